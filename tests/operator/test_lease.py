"""Leadership through everything that may come between a request and its answer."""

import asyncio

import pytest

from quire_operator.kube import ApiError
from quire_operator.lease import Lease

DEADLINE_S = 60.0


class Leases:
    """The API server's part; its answers wait for `gate`, its writes are there before they are answered."""

    def __init__(self):
        self.lease = None
        self.version = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()

    async def _answer(self):
        self.asked.set()
        await self.gate.wait()

    async def get(self, *_):
        await self._answer()
        return self.lease

    async def replace(self, manifest):
        self.version += 1
        self.lease = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(self.version)}}
        await self._answer()
        return self.lease

    create = replace

    @property
    def holder(self):
        return self.lease["spec"].get("holderIdentity", "") if self.lease else ""


@pytest.fixture
def leases():
    return Leases()


@pytest.mark.parametrize("turns", range(8))
async def test_told_to_end_while_a_renewal_is_answered_it_ends_and_gives_the_lease_back(leases, turns):
    lease = Lease(leases, "n", "l", "me", renew_s=0.01)
    holding = asyncio.create_task(lease.run())
    await lease.changed.wait()
    leases.gate.clear()
    leases.asked.clear()
    await leases.asked.wait()
    holding.cancel()
    for _ in range(turns):
        await asyncio.sleep(0)
    leases.gate.set()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(holding, return_exceptions=True)
    assert leases.holder == ""


async def test_told_to_end_before_it_has_read_that_the_lease_is_its_own_it_gives_it_back(leases):
    leases.lease = {"metadata": {"name": "l", "resourceVersion": "0"}, "spec": {}}
    original = leases.replace

    async def slow(manifest):
        leases.gate.clear()
        return await original(manifest)

    leases.replace = slow
    holding = asyncio.create_task(Lease(leases, "n", "l", "me").run())
    async with asyncio.timeout(DEADLINE_S):
        while leases.holder != "me":
            leases.asked.clear()
            await leases.asked.wait()
    leases.replace = original
    holding.cancel()
    leases.gate.set()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(holding, return_exceptions=True)
    assert leases.holder == ""


async def test_whoever_does_not_hold_it_leaves_it_as_it_is(leases):
    leases.lease = {"metadata": {"name": "l", "resourceVersion": "7"}, "spec": {"holderIdentity": "other"}}
    waiting = asyncio.create_task(Lease(leases, "n", "l", "me", renew_s=0.01).run())
    await leases.asked.wait()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert leases.lease["metadata"]["resourceVersion"] == "7"
    assert leases.holder == "other"


async def test_a_renewal_that_was_written_twice_keeps_it(leases):
    lease, original, times = Lease(leases, "n", "l", "me", renew_s=0.01), leases.replace, []

    async def twice(manifest):
        times.append(1)
        await original(manifest)
        raise ApiError(409, "Conflict", "the object has been modified")

    leases.replace = twice
    holding = asyncio.create_task(lease.run())
    async with asyncio.timeout(DEADLINE_S):
        while len(times) < 3:
            leases.asked.clear()
            await leases.asked.wait()
            assert lease.is_held() or not times
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)


async def test_a_refusal_does_not_end_it(leases):
    lease, refused = Lease(leases, "n", "l", "me", renew_s=0.01), ApiError(403, "Forbidden", "no")
    original = leases.get

    async def once(*_):
        leases.get = original
        raise refused

    leases.get = once
    holding = asyncio.create_task(lease.run())
    async with asyncio.timeout(DEADLINE_S):
        await lease.changed.wait()
    assert lease.is_held()
    holding.cancel()
    await asyncio.gather(holding, return_exceptions=True)
