"""When a deployment is looked at; what is decided then has tests of its own."""

import asyncio
from collections import Counter

import pytest
from tests.operator.conftest import deployment

from quire_api.v1alpha1 import Condition, LLMDeploymentStatus
from quire_operator.kube import ApiUnavailable, NotLeading
from quire_operator.reconcile import (
    LOOK_AGAIN_ANYWAY_S,
    LOOK_AGAIN_READY_S,
    LOOK_AGAIN_S,
    WORKERS,
    Reconciler,
    look_again_in,
)
from quire_operator.resync import EVERY_S
from quire_operator.world import Key

KEY = Key("models", "tiny")
DEADLINE_S = 60.0


class Known:
    def keys(self):
        return iter([KEY])

    def children(self, key, kind):
        return []


class Listed:
    """A cluster of which only the keys are asked."""

    store = routing = Known()


class Watched(Reconciler):
    """Notes whom it looks at; raises what `failures` say first."""

    def __init__(self):
        super().__init__(Listed(), "me")
        self.looks = []
        self.failures = []
        self.hanging = {}

    async def reconcile(self, key):
        self.looks.append(key)
        if key in self.hanging:
            if self.hanging[key] is not None:
                await self.hanging[key].wait()
            raise ApiUnavailable("the webhook does not answer")
        if self.failures:
            raise self.failures.pop()


@pytest.fixture
async def reconciler():
    reconciler = Watched()
    working = asyncio.create_task(reconciler.run())
    yield reconciler
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def until(holds):
    async with asyncio.timeout(DEADLINE_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_nothing_is_looked_at_before_all_has_been_listed(reconciler):
    """What is not listed yet looks gone, and would lose its route."""
    reconciler.lead()
    reconciler.wake([KEY])
    await asyncio.sleep(0.05)
    assert reconciler.looks == []
    reconciler.seen([])
    await until(lambda: reconciler.looks == [KEY])


async def test_what_lacked_the_lease_for_a_moment_is_looked_at_again(reconciler):
    """The lease may be back before anybody has noticed that it was gone."""
    reconciler.failures = [NotLeading("PATCH")]
    reconciler.lead()
    reconciler.seen([])
    await until(lambda: reconciler.looks == [KEY, KEY])


async def test_however_many_hang_and_fail_the_others_are_looked_at(reconciler):
    """As behind a webhook that hangs until the API server gives up on it."""
    hanging = [Key("models", f"hanging-{number}") for number in range(3 * WORKERS)]
    reconciler.lead()
    reconciler.seen([])
    reconciler.hanging = dict.fromkeys(hanging)
    reconciler.wake(hanging)
    await until(lambda: len(reconciler.looks) > len(hanging))
    for key in hanging:
        reconciler.hanging[key] = asyncio.Event()
    reconciler.wake(hanging)
    await until(lambda: any(count == 2 for count in Counter(reconciler.looks).values()))
    fine = [Key("models", f"fine-{number}") for number in range(WORKERS)]
    reconciler.wake(fine)
    await until(lambda: set(fine) <= set(reconciler.looks))


@pytest.mark.parametrize(
    ("spec", "ready", "seconds"),
    [
        ({}, "False", LOOK_AGAIN_S),
        ({}, None, LOOK_AGAIN_S),
        ({}, "True", LOOK_AGAIN_ANYWAY_S),
        ({"access": {"apiKeysSecretRef": {"name": "keys"}}}, "True", LOOK_AGAIN_READY_S),
        ({"model": {"source": "hf://a/b", "auth": {"secretRef": {"name": "token"}}}}, "True", LOOK_AGAIN_READY_S),
        ({"model": {"source": "pvc://weights/m"}}, "True", LOOK_AGAIN_READY_S),
        ({"model": {"source": "hf://a/b", "volume": {"size": "1Gi"}}}, "True", LOOK_AGAIN_READY_S),
    ],
)
def test_what_refers_to_objects_that_no_watch_tells_of_is_looked_at_more_often(spec, ready, seconds):
    conditions = (
        [Condition(type="Ready", status=ready, reason="R", message="m", last_transition_time="t")] if ready else []
    )
    assert look_again_in(deployment(**spec), LLMDeploymentStatus(conditions=conditions)) == seconds


def test_a_deployment_that_nothing_wakes_is_looked_at_as_often_as_lists_are_compared():
    assert LOOK_AGAIN_ANYWAY_S <= EVERY_S
