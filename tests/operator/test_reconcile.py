"""When a deployment is looked at; what is decided then has tests of its own."""

import asyncio

import pytest

from quire_operator.kube import NotLeading
from quire_operator.reconcile import Reconciler
from quire_operator.world import Key

KEY = Key("models", "tiny")
DEADLINE_S = 60.0


class Known:
    def keys(self):
        return iter([KEY])


class Listed:
    """A cluster of which only the keys are asked."""

    store = routing = Known()


class Watched(Reconciler):
    """Notes whom it looks at; raises what `failures` say first."""

    def __init__(self):
        super().__init__(Listed(), "me")
        self.looks = []
        self.failures = []

    async def reconcile(self, key):
        self.looks.append(key)
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
