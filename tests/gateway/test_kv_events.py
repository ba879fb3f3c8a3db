"""Real engine, real gateway, and between them a relay that can cut or choke the event stream alone."""

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from quire_api import wire
from quire_api.kv_events import KV_EVENTS_PATH, FrameReader, Snapshot

MODEL = Path(__file__).parents[2] / "models" / "quire-tiny"
KEY = "inner"
BLOCKS = 64
DEADLINE_S = 120.0


class Engine:
    """`quire serve` on one port, start after start."""

    def __init__(self, port, log):
        self.port = port
        self.log = log

    def start(self):
        flags = ["--served-model-name", "m", "--port", str(self.port), "--device", "cpu", "--dtype", "float32"]
        sizes = ["--host", "127.0.0.1", "--num-gpu-blocks-override", str(BLOCKS), "--max-num-seqs", "8"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quire", "serve", str(MODEL), *flags, *sizes],
            env={**os.environ, "QUIRE_INTERNAL_KEY": KEY, "OMP_NUM_THREADS": "1"},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def kill(self):
        self.process.kill()
        self.process.wait(60)


class Relay:
    """Passes connections on to `port`. Those of the event stream can be cut, or left open without a byte."""

    def __init__(self, port):
        self.target = port
        self.is_cut = False
        self.flows = asyncio.Event()
        self.flows.set()
        self.streams = set()

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    def cut(self):
        self.is_cut = True
        for writer in self.streams:
            writer.transport.abort()

    async def serve(self, reader, writer):
        upstream = None
        try:
            first = await reader.read(1 << 16)
            is_stream = KV_EVENTS_PATH.encode() in first
            if is_stream:
                self.streams.add(writer)
                if self.is_cut:
                    return
            back, upstream = await asyncio.open_connection("127.0.0.1", self.target)
            upstream.write(first)
            async with asyncio.TaskGroup() as group:
                group.create_task(self.copy(reader, upstream, is_stream=False))
                group.create_task(self.copy(back, writer, is_stream))
        except* OSError:
            pass
        finally:
            self.streams.discard(writer)
            for each in (writer, upstream):
                if each is not None:
                    each.transport.abort()

    async def copy(self, source, sink, is_stream):
        while data := await source.read(1 << 16):
            if is_stream:
                await self.flows.wait()
            sink.write(data)
            await sink.drain()
        raise ConnectionResetError


@pytest.fixture(scope="module")
def engine(tmp_path_factory, unused_tcp_port_factory):
    with (tmp_path_factory.mktemp("engine") / "log").open("wb") as log:
        engine = Engine(unused_tcp_port_factory(), log)
        engine.start()
        yield engine
        engine.kill()


@pytest.fixture
async def relay(engine):
    relay = Relay(engine.port)
    await relay.start()
    yield relay
    relay.flows.set()
    relay.server.close()


@pytest.fixture
async def real(make_world, relay):
    """A gateway that knows the engine's cache exactly."""
    world = await make_world({}, {"internal_key": KEY})
    world.table.deployments[0].replicas = [wire.Replica(id="real", url=relay.url)]
    world.publish()
    await until(world, index_mode="EXACT")
    return world


async def report(world):
    async with world.http() as http:
        replicas = (await http.get("/internal/v1/replicas")).json()["replicas"]
    return replicas[0] if replicas else {}


async def until(world, **wanted):
    async with asyncio.timeout(DEADLINE_S):
        while True:
            seen = await report(world)
            if seen and all(seen[name] == value for name, value in wanted.items()):
                return seen
            await asyncio.sleep(0.05)


async def ask(world, prompt):
    """The gateway's estimate of what is cached, what the engine found, and the index mode."""
    raw = await world.client().completions.with_raw_response.create(
        model="m", prompt=prompt, max_tokens=2, temperature=0, extra_body={"ignore_eos": True}
    )
    details = raw.parse().usage.prompt_tokens_details
    found = (details.cached_tokens or 0) if details else 0
    return int(raw.headers["x-quire-cached-tokens"]), found, raw.headers["x-quire-index-mode"]


def prompt(number, length=20 * 16 + 1):
    return [number * 31 + position % 29 for position in range(length)]


async def settled(world):
    """Expectations are over; what is indexed is what the engine told."""
    index = world.gateway.fleet.serving("m").index
    await world.until(lambda: len(index) == len(index.stored_at("real")))
    return index


async def test_the_estimate_is_what_the_engine_finds_however_much_it_has_evicted(real):
    evicted = 0
    for number in (1, 2, 1, 3, 4, 1, 2, 5, 4):
        await settled(real)
        estimate, found, mode = await ask(real, prompt(number))
        assert (estimate, mode) == (found, "EXACT")
        evicted += number in (1, 2, 4) and found < 20 * 16
    assert evicted > 3, "the cache is too large for this test"


async def test_what_the_engine_evicted_no_longer_counts(real):
    await ask(real, prompt(1))
    for number in (6, 7, 8, 9):
        await ask(real, prompt(number))
    await settled(real)
    async with real.http() as http:
        told = (await http.post("/debug/route", json={"model": "m", "prompt": prompt(1)})).json()
        metrics = (await http.get("/metrics")).text
    assert (told["index_mode"], told["replicas"][0]["cached_tokens"]) == ("EXACT", 0)
    assert 'quire_gateway_index_mode{deployment="d",mode="EXACT",namespace="n",replica="real"} 1.0' in metrics
    assert 'quire_gateway_index_mode{deployment="d",mode="FALLBACK",namespace="n",replica="real"} 0.0' in metrics
    blocks = (await report(real))["index_blocks"]
    assert 0 < blocks < BLOCKS
    assert f'quire_gateway_index_replica_blocks{{deployment="d",namespace="n",replica="real"}} {blocks:.1f}' in metrics


async def test_without_events_the_gateway_goes_by_what_it_sends_and_recovers(real, relay):
    relay.cut()
    await until(real, index_mode="FALLBACK")
    await ask(real, prompt(11))
    assert (await ask(real, prompt(11)))[::2] == (20 * 16, "FALLBACK")
    assert (await report(real))["index_problem"]
    relay.is_cut = False
    seen = await until(real, index_mode="EXACT")
    assert seen["index_problem"] == ""
    assert (await ask(real, prompt(11)))[0] == 20 * 16


async def test_a_stream_that_falls_silent_is_not_believed(real, relay):
    relay.flows.clear()
    await until(real, index_mode="FALLBACK")
    relay.flows.set()
    await until(real, index_mode="EXACT")


async def test_an_engine_that_restarted_is_known_to_be_empty(real, engine):
    await ask(real, prompt(1))
    assert (await report(real))["index_blocks"] > 0
    engine.kill()
    engine.start()
    await until(real, index_mode="EXACT", index_blocks=0, is_routable=True)
    assert (await ask(real, prompt(1)))[:2] == (0, 0)


async def test_a_replica_that_leaves_takes_its_blocks_along(real):
    await ask(real, prompt(1))
    index = await settled(real)
    assert len(index)
    real.table.deployments[0].replicas = []
    real.publish()
    await real.until(lambda: not len(index))


async def test_events_are_for_holders_of_the_internal_key(real, engine):
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{engine.port}", timeout=DEADLINE_S) as http:
        assert (await http.get(KV_EVENTS_PATH)).status_code == 403
        assert (await http.get(KV_EVENTS_PATH, headers={wire.HEADER_INTERNAL_KEY: "guess"})).status_code == 403
        async with contextlib.AsyncExitStack() as stack:
            heads = []
            for _ in range(3):
                headers = {wire.HEADER_INTERNAL_KEY: KEY}
                stream = await stack.enter_async_context(http.stream("GET", KV_EVENTS_PATH, headers=headers))
                reader = FrameReader()
                heads.append(next(iter(reader.read(await anext(stream.aiter_raw())))))
    assert all(isinstance(head, Snapshot) and head.capacity == BLOCKS - 1 for head in heads)
    assert len({head.epoch for head in heads}) == 1
