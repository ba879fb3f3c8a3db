"""A stream of KV events goes on for a moment after its replica has left; its id may be another's by then."""

import asyncio
from contextlib import asynccontextmanager

from quire_api import kv_events, wire
from quire_api.kv_events import Batch, Stored
from quire_gateway.fleet import Fleet
from quire_gateway.index import INDEX_KEY_BYTES
from quire_gateway.kv_follow import follow_events
from quire_gateway.metrics import Metrics

DEADLINE_S = 60.0
CAPACITY = 100


def key(number):
    return bytes([number]) * 16


class Engine:
    """Tells of its blocks over one stream, when it is told to."""

    @classmethod
    @asynccontextmanager
    async def run(cls):
        self = cls()
        self.asked = asyncio.Event()
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield self
        server.close()
        if self.asked.is_set():
            self.writer.transport.abort()

    async def serve(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n\r\n")
        self.writer = writer
        self.asked.set()

    def snapshot(self, *keys):
        self.writer.write(kv_events.pack_snapshot(self.url, 0, 4, CAPACITY, keys))


def table(**urls):
    replicas = [wire.Replica(id=name, url=url) for name, url in urls.items()]
    return wire.RoutingTable(
        deployments=[wire.Deployment(name="d", namespace="n", served_names=["m"], replicas=replicas)]
    )


async def follow(fleet, engine):
    """What follows `engine`, which is r0 from now on."""
    fleet.apply(table(r0=engine.url))
    (replica,) = fleet.replicas()
    replica.deployment.index.add_replica("r0", CAPACITY)
    task = asyncio.create_task(follow_events(replica))
    await engine.asked.wait()
    return replica.deployment.index, task


async def known(index):
    while not index.is_exact("r0"):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_what_a_replica_tells_after_it_has_left_is_not_the_next_ones_of_its_id():
    async with asyncio.timeout(DEADLINE_S), Engine.run() as old, Engine.run() as new:
        fleet = Fleet()
        index, ending = await follow(fleet, old)
        old.snapshot(key(1))
        await known(index)
        index, going_on = await follow(fleet, new)
        new.snapshot(key(2))
        await known(index)
        old.writer.write(kv_events.pack(Batch(old.url, 1, [Stored(b"", key(9))])))
        await old.writer.drain()
        old.writer.close()
        await ending
        assert index.stored_at("r0") == {key(2)[:INDEX_KEY_BYTES]}
        assert index.is_exact("r0")
        going_on.cancel()


async def test_what_was_told_and_lost_is_shown_also_of_replicas_that_are_gone():
    async with asyncio.timeout(DEADLINE_S), Engine.run() as engine:
        fleet, metrics = Fleet(), Metrics()

        def shown():
            return metrics.render(fleet, False).decode().splitlines()

        who = 'deployment="d",namespace="n"'
        index, following = await follow(fleet, engine)
        assert f'quire_gateway_index_losses_total{{cause="gap",{who}}} 0.0' in shown()
        engine.snapshot(key(1), key(2))
        await known(index)
        engine.writer.write(kv_events.pack(Batch(engine.url, 5, [Stored(b"", key(9))])))
        while index.is_exact("r0"):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        following.cancel()
        fleet.apply(table())
        assert f'quire_gateway_index_losses_total{{cause="gap",{who}}} 1.0' in shown()
        assert f"quire_gateway_index_blocks_told_total{{{who}}} 2.0" in shown()


async def test_what_comes_for_a_replica_that_is_gone_is_kept_nowhere():
    async with asyncio.timeout(DEADLINE_S), Engine.run() as engine:
        fleet = Fleet()
        index, ending = await follow(fleet, engine)
        fleet.apply(table())
        engine.snapshot(key(1), key(2))
        await ending
        assert len(index) == 0
