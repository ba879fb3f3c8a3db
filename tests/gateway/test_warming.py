"""A new replica has its siblings' hottest prefixes before it gets requests, and gets requests whatever goes wrong."""

import asyncio
import re

import msgspec
import pytest

from quire_api import wire
from quire_api.warming import HotPrefix, HotPrefixes

KEY = "inner"
HOT = HotPrefixes(model_revision="rev", block_size=4, block_format=1, prefixes=[HotPrefix(3, b"\1\0\0\0" * 8, "salt")])


@pytest.fixture
async def join(make_world, make_engine):
    """`await join(old, new, **config)`: a world with the engine `old`, which the engine `new` joins."""

    async def start(old: dict, new: dict, key: str = KEY, **config):
        knobs = {"internal_key": KEY, "hot": HOT}
        engines = {"old": await make_engine(**{**knobs, **old}), "new": await make_engine(**{**knobs, **new})}
        world = await make_world({"old": engines["old"]}, {"internal_key": key}, **config)
        world.engines = engines
        await world.until_routable("old")
        world.table.deployments[0].replicas.append(wire.Replica(id="new", url=engines["new"].url))
        world.publish()
        return world

    return start


async def samples(world) -> dict[str, float]:
    async with world.http() as http:
        text = (await http.get("/metrics")).text
    found = re.findall(r"^quire_gateway_(warm\w+|requests_total)(\{.*\}) (\S+)$", text, re.M)
    return {name + "".join(re.findall(r"outcome=\"(\w+)\"", labels)): float(value) for name, labels, value in found}


async def test_a_new_replica_gets_what_its_sibling_tells_before_it_gets_requests(join):
    gate = asyncio.Event()
    world = await join({}, {"warm_gate": gate}, warm_timeout_s=300)
    await world.until(lambda: world.engines["new"].warmings)
    assert world.routable() == {"old"}
    assert await reason(world) == "Warming: it computes the prefixes that its siblings are asked for most"
    gate.set()
    await world.until_routable("old", "new")
    (asked,), (warming,) = world.engines["old"].asked_hot, world.engines["new"].warmings
    assert asked.path == "/internal/v1/hot-prefixes?prefixes=64&tokens=2048"  # half of its 4,096 tokens of KV cache
    assert warming.path.startswith("/internal/v1/warm?seconds=")
    assert msgspec.msgpack.decode(warming.body, type=HotPrefixes) == HOT
    seen = await samples(world)
    assert seen["warmings_totalwarmed"] == seen["warming_seconds_count"] == 1
    assert (seen["warmed_prefixes_total"], seen["warmed_tokens_total"]) == (1, 8)
    assert "requests_total" not in seen
    assert world.log_lines() == []
    assert not world.engines["new"].seen


async def reason(world) -> str:
    async with world.http() as http:
        told = msgspec.json.decode((await http.get("/internal/v1/replicas")).content, type=wire.GatewayReport)
    return next(each.reason for each in told.replicas if each.replica == "new")


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [
        ({"hot": None}, {}, "not_told"),
        ({"hot": HotPrefixes(model_revision="rev", block_size=4, block_format=1)}, {}, "nothing_hot"),
        ({"dies_when_asked": True}, {}, "not_told"),
        ({}, {"hot": None}, "refused"),
        ({}, {"dies_when_warmed": True}, "failed"),
    ],
    ids=["an older engine", "nothing is hot", "the sibling dies", "the new one is older", "the new one breaks off"],
)
async def test_what_goes_wrong_keeps_no_replica_back(join, old, new, outcome):
    world = await join(old, new, warm_timeout_s=300)
    await world.until_routable("old", "new")
    assert (await samples(world))[f"warmings_total{outcome}"] == 1
    # Nobody's health has suffered.
    assert all(replica.health.generation == 1 for replica in world.gateway.fleet.replicas())


async def test_a_sibling_that_knows_another_key_tells_nothing(join):
    world = await join({"hot": None}, {})
    await world.until_routable("old", "new")
    world.engines["old"].hot, world.engines["old"].internal_key = HOT, "former"
    world.engines["new"].epoch = "2"
    await again(world)
    assert [seen.headers["x-quire-internal-key"] for seen in world.engines["old"].asked_hot] == [KEY, KEY]
    assert not world.engines["new"].warmings
    assert (await samples(world))["warmings_totalnot_told"] == 2


async def again(world) -> None:
    """The new replica is ejected and comes back."""
    replica = next(each for each in world.gateway.fleet.replicas() if each.id == "new")
    replica.health.eject(asyncio.get_running_loop().time(), "for the test", 0.0)
    world.gateway._follower.watch(replica)
    await world.until_routable("old", "new")


@pytest.mark.parametrize("slow", [{"old": {"hot_delay_s": 600.0}}, {"new": {"warm_delay_s": 600.0}}])
async def test_who_is_slow_keeps_nobody_back_for_longer_than_the_bound(join, slow):
    world = await join(slow.get("old", {}), slow.get("new", {}), warm_timeout_s=0.5)
    await world.until_routable("old", "new")
    assert sum(value for name, value in (await samples(world)).items() if name.startswith("warmings_total")) == 1


async def test_a_new_replica_that_dies_while_it_is_warmed_is_not_routable(join):
    world = await join({}, {"warm_delay_s": 600.0}, warm_timeout_s=300)
    await world.until(lambda: world.engines["new"].warmings)
    world.engines["new"].kill()
    await world.until(
        lambda: "ProbeFailed" in next(each.health.reason for each in world.gateway.fleet.replicas() if each.id == "new")
    )
    assert world.routable() == {"old"}
    assert (await world.client().completions.create(model="m", prompt="w1")).choices


@pytest.mark.parametrize(
    ("deployment_key", "config", "new"),
    [(KEY, {"warm_timeout_s": 0}, {}), (KEY, {"warm_tokens": 0}, {}), (KEY, {}, {"revision": "other"})],
    ids=["no time", "no tokens", "another model"],
)
async def test_nobody_is_asked(join, deployment_key, config, new):
    world = await join({}, new, deployment_key, **config)
    await world.until_routable("old", "new")
    assert not world.engines["old"].asked_hot
    assert not world.engines["new"].warmings


async def test_engines_of_a_block_format_that_the_gateway_does_not_know_warm_one_another(join):
    world = await join({"block_format": 2}, {"block_format": 2})
    await world.until_routable("old", "new")
    assert len(world.engines["new"].warmings) == 1


async def test_engines_of_two_block_formats_do_not(join):
    world = await join({"block_format": 2}, {})
    await world.until_routable("old", "new")
    assert not world.engines["old"].asked_hot


async def test_a_draining_sibling_is_left_alone(join):
    world = await join({}, {"tells_model": False})
    await world.until_routable("old", "new")
    world.table.deployments[0].replicas[0].is_draining = True
    world.engines["new"].tells_model = True
    world.publish()
    await world.until_routable("new")
    replica = next(each for each in world.gateway.fleet.replicas() if each.id == "new")
    replica.health.eject(asyncio.get_running_loop().time(), "for the test", 0.0)
    world.gateway._follower.watch(replica)
    await world.until_routable("new")
    assert not world.engines["old"].asked_hot


async def test_the_first_replica_waits_for_nobody_and_one_that_comes_back_is_not_warmed_again(join):
    world = await join({}, {})
    await world.until_routable("old", "new")
    assert not world.engines["old"].warmings
    await again(world)
    assert len(world.engines["new"].warmings) == 1
    # Started anew, its cache is empty.
    world.engines["new"].epoch = "2"
    await again(world)
    assert len(world.engines["new"].warmings) == 2
