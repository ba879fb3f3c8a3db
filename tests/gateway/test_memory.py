"""What a request took is given back when it ends: Python's collector would stop every other request for it."""

import asyncio
import gc

import pytest

from quire_gateway.life import Life
from quire_gateway.relay import Relay
from quire_gateway.reply import Reply
from quire_gateway.server import ClientConnection

REQUESTS = 5


def living():
    """Objects of finished requests that are still there, without a collection."""
    return [each for each in gc.get_objects() if type(each) in (ClientConnection, Life, Relay, Reply)]


async def until(holds):
    """Whether it does within a minute."""
    for _ in range(6000):
        if holds():
            return True
        await asyncio.sleep(0.01)
    return False


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m", "prompt": "w1"}',
        b'{"model": "m", "prompt": "w1", "stream": true}',
        b'{"model": "m", "stream": true}',
        b"{",
    ],
    ids=["whole", "streamed", "refused by the replica", "refused"],
)
async def test_ended_requests_leave_nothing_to_the_collector(world, no_collector, body):
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    for _ in range(REQUESTS):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
        writer.write(head + body)
        assert (await reader.read()).startswith(b"HTTP/1.1 ")
        writer.close()
        await writer.wait_closed()
    assert await until(lambda: not living())


async def test_a_client_that_goes_in_mid_stream_leaves_nothing_either(world, no_collector):
    world.engines["r0"].first_delay_s = 60.0
    body = b'{"model": "m", "prompt": "w1", "stream": true}'
    _, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    assert await until(lambda: world.engines["r0"].seen)
    writer.close()
    await writer.wait_closed()
    assert await until(lambda: not living())


@pytest.mark.parametrize(
    ("hedge_after_s", "asked", "answers"),
    [(60.0, ["r0"], "r0"), (0.05, ["r0", "r1"], "r0"), (0.05, ["r0", "r1"], "r1")],
    ids=["in time", "late", "elsewhere"],
)
async def test_where_late_streams_are_hedged_none_leaves_anything(
    make_world, make_engine, no_collector, hedge_after_s, asked, answers
):
    engines = {name: await make_engine() for name in ("r0", "r1")}
    world = await make_world(engines, {"policy": "roundRobin"}, hedge_after_s=hedge_after_s)
    for engine in engines.values():
        engine.gate = asyncio.Event()
    body = b'{"model": "m", "prompt": "w1", "stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
    writer.write(head + body)
    assert await until(lambda: [name for name, engine in engines.items() if engine.seen] == asked)
    engines[answers].gate.set()
    assert b"[DONE]" in await reader.read()
    writer.close()
    await writer.wait_closed()
    assert await until(lambda: not living())
