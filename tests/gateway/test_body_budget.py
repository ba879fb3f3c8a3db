"""The bodies of all requests together have a bound, and who is slow pays for it."""

import asyncio
import contextlib
import re
import sys

import msgspec
import psutil

from quire_api import wire
from quire_gateway.body_budget import BodyBudget

KB, MB = 1 << 10, 1 << 20
LIMIT = 2 * MB
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"


class Slow:
    """A client that sends the beginning of a body and no end, in small pieces."""

    def __init__(self, port, size):
        self.port, self.size = port, size
        self.answer = b""

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.reading = asyncio.create_task(self.read())
        self.writer.write(HEAD % MB)
        await self.send(self.size)
        return self

    async def __aexit__(self, *_):
        self.reading.cancel()
        self.writer.transport.abort()

    async def send(self, size, piece=512):
        with contextlib.suppress(ConnectionError):
            for _ in range(0, size, piece):
                self.writer.write(b" " * piece)
                await self.writer.drain()

    async def read(self):
        with contextlib.suppress(ConnectionError):
            self.answer = await self.reader.read()


def prompt_of(size):
    return {"model": "m", "prompt": "w1 " * (size // 3)}


def test_it_takes_from_whoever_held_most_for_longest_and_never_from_what_is_whole():
    lost = []
    budget = BodyBudget(100)
    whole, old, large, new = (
        budget.begin(lambda name=name: lost.append(name), since)
        for name, since in (("whole", 0.0), ("old", 0.0), ("large", 5.0), ("new", 9.0))
    )
    assert all([whole.grow(40, 1.0), old.grow(10, 1.0), large.grow(30, 6.0)])
    whole.complete()
    assert new.grow(20, 10.0)
    assert (lost, budget.used) == ([], 100)
    assert new.grow(1, 10.0)  # 30 bytes for 5 s are more than 10 for 10 s
    assert (lost, budget.used) == (["large"], 71)
    assert not new.grow(40, 100.0)  # by now it is the one
    assert (lost, budget.used) == (["large"], 50)
    whole.release()
    whole.release()
    assert budget.used == 10


async def test_slow_senders_give_way_and_neighbours_are_unharmed(make_world):
    world = await make_world(2, max_buffered_bytes=LIMIT, max_body_bytes=MB)
    most = 0
    async with contextlib.AsyncExitStack() as stack, world.http() as http:
        slow = []
        for _ in range(40):
            slow.append(await stack.enter_async_context(Slow(world.gateway.port, 200 * KB)))
            answer = await http.post("/v1/completions", json=prompt_of(300 * KB))
            assert answer.status_code == 200, answer.text
            used = re.search(r"^quire_gateway_buffered_body_bytes (\S+)$", (await http.get("/metrics")).text, re.M)
            most = max(most, float(used[1]))
        await world.until(lambda: sum(bool(each.answer) for each in slow) >= 29)
        refused = [each.answer for each in slow if each.answer]
        assert all(b" 503 " in answer and b"too_much_buffered" in answer for answer in refused)
        assert all(b"retry-after: 1" in answer for answer in refused)
        text = (await http.get("/metrics")).text
    assert MB < most <= LIMIT
    told = f'refusals_total{{deployment="",namespace="",reason="too_much_buffered"}} {len(refused)}.0'
    assert told in text
    assert sum(len(engine.seen) for engine in world.engines.values()) == len(slow)
    await world.until(lambda: world.gateway._server.bodies.used == 0)


async def test_bodies_that_are_being_answered_count_and_give_way_to_none(make_world, make_engine):
    gate = asyncio.Event()
    world = await make_world({"r": await make_engine(gate=gate)}, max_buffered_bytes=LIMIT, max_body_bytes=MB)
    async with world.http() as http:
        asked = [asyncio.create_task(http.post("/v1/completions", json=prompt_of(600 * KB))) for _ in range(3)]
        await world.until(lambda: len(world.engines["r"].seen) == 3)
        late = await http.post("/v1/completions", json=prompt_of(600 * KB))
        assert (late.status_code, late.json()["error"]["code"]) == (503, "too_much_buffered")
        assert (await http.post("/v1/completions", json=[])).status_code == 400
        gate.set()
        assert [(await each).status_code for each in asked] == [200] * 3
        assert (await http.post("/v1/completions", json=prompt_of(600 * KB))).status_code == 200


async def test_clients_that_go_leave_nothing_behind(make_world, make_engine):
    gate = asyncio.Event()
    world = await make_world({"r": await make_engine(gate=gate)}, max_buffered_bytes=LIMIT, max_body_bytes=MB)
    body = msgspec.json.encode(prompt_of(100 * KB))
    for piece in (HEAD % MB + b" " * 1000, HEAD % len(body) + body, 3 * (HEAD % len(body) + body)):
        _, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
        writer.write(piece)
        await writer.drain()
        await world.until(lambda: world.gateway._server.bodies.used)
        writer.transport.abort()
        await world.until(lambda: not world.gateway._server.bodies.used)


async def test_the_process_stays_small_whatever_is_sent(tmp_path):
    table = tmp_path / "table.json"
    table.write_bytes(msgspec.json.encode(wire.RoutingTable()))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quire_gateway", "--port", "0", "--routing-table", str(table)),
        *("--max-buffered-bytes", str(8 * MB), "--max-body-bytes", str(MB)),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            while b"listening on" not in (line := await process.stderr.readline()):
                assert line
        port = int(line.rsplit(b":", 1)[1])
        memory = psutil.Process(process.pid).memory_info
        before = memory().rss
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(40):
                slow = await stack.enter_async_context(Slow(port, 0))
                await slow.send(MB - KB, KB)
            assert memory().rss - before < 3 * 8 * MB
    finally:
        process.kill()
        await process.wait()
