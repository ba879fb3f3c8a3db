"""Retries stay within their budget, one for each deployment, but for the first one after a replica's loss."""

import openai
import pytest

from quire_api import wire

ASK = [{"role": "user", "content": "w1 w2 w3"}]
FLOOR = 10
"""Retries that a budget holds when it is full."""


def come_back_at_once(world):
    """Replicas that are ejected again and again are probed without a delay."""
    for replica in world.gateway.fleet.replicas():
        replica.health.longest_delay_s = 0.0


def asked(engines):
    return sum(len(engine.seen) for engine in engines)


async def attempts(world, model="m"):
    """Of one request that is answered."""
    raw = await world.client().chat.completions.with_raw_response.create(model=model, messages=ASK)
    return int(raw.headers["x-quire-attempts"])


async def test_where_every_replica_fails_on_everything_retries_are_no_storm(make_world):
    ratio, requests = 0.25, 40
    world = await make_world(4, retry_ratio=ratio, max_attempts=10)
    come_back_at_once(world)
    engines = world.engines.values()
    for engine in engines:
        engine.dies_before_first_byte = True
    for _ in range(requests):
        with pytest.raises(openai.InternalServerError, match="failed on this request"):
            await attempts(world)
    free = 2 * requests  # each one, and its first retry
    # Without a budget: ten times for each request.
    assert free + FLOOR <= asked(engines) <= free + FLOOR + ratio * requests
    async with world.http() as http:
        lines = (await http.get("/metrics")).text.splitlines()
    (retried,) = [line for line in lines if line.startswith("quire_gateway_retries_total{")]
    assert float(retried.split()[-1]) == asked(engines) - requests


async def test_502s_are_passed_on_once_the_budget_is_used_up(make_world):
    world = await make_world(2, retry_ratio=0.0, outlier_max_ejection_percent=0)
    come_back_at_once(world)
    engines = world.engines.values()
    for engine in engines:
        engine.status = 502
    for _ in range(3 * FLOOR):
        await world.until_routable(*world.engines)
        with pytest.raises(openai.InternalServerError, match="stub says no"):
            await attempts(world)
    assert asked(engines) == 3 * FLOOR + FLOOR


async def test_the_first_retry_after_a_loss_needs_no_budget(make_world):
    world = await make_world(2, retry_ratio=0.0, outlier_max_ejection_percent=0)
    come_back_at_once(world)
    (deployment,) = world.gateway.fleet.deployments.values()
    while deployment.retries.take():
        pass
    bad, _ = world.engines.values()
    bad.dies_before_first_byte = True
    tries = []
    for _ in range(2 * FLOOR):
        await world.until_routable(*world.engines)
        tries.append(await attempts(world))
    assert set(tries) <= {1, 2}
    assert tries.count(2) == len(bad.seen) > 0


async def test_a_deployment_that_fails_uses_up_nobody_elses_retries(make_world, make_engine):
    world = await make_world(2, retry_ratio=0.0, outlier_max_ejection_percent=0)
    other = {"a": await make_engine(), "b": await make_engine()}
    replicas = [wire.Replica(id=name, url=engine.url) for name, engine in other.items()]
    world.table.deployments.append(wire.Deployment(name="e", namespace="n", served_names=["e"], replicas=replicas))
    world.publish()
    await world.until_routable(*world.engines, *other)
    come_back_at_once(world)
    for engine in world.engines.values():
        engine.status = 502
    for _ in range(2 * FLOOR):
        await world.until_routable(*world.engines, *other)
        with pytest.raises(openai.InternalServerError, match="stub says no"):
            await attempts(world)
    other["a"].status = 502
    tries = [await attempts(world, "e") for _ in "ab"]
    assert max(tries) == 2
