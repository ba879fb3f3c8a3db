"""What a gateway costs over real HTTP: ours, nginx, LiteLLM's proxy and a plain copy of bytes, before one stub engine.

All on this machine, one after the other in each round, `rounds` rounds; every server has one process. CPU is that of
the server's processes (user + system), so that neighbours on the machine touch it little; times are the client's and
hold whatever else runs. "added" is the difference to the engine asked directly in the same round.

requests      small chats, not streamed, 16 connections, back to back
streams       64 streams, an event each 10 ms
open          chats of 20 events, streamed, 200 a second (Poisson), whatever is still running: request to first event
few streams   4 streams, and
slow          5 chats a second: streaming as far as LiteLLM can follow, so that its latency is no queue that only grows

The stub engine tells no model, and a proxy that knows none only forwards. What ours does beside that is in the rows of
`KNOWN`: before the real server, with a simulated engine in it, it tokenises prompts, looks for their blocks in its
index, notes them, and takes the comment lines out of streams.
"""

import asyncio
import json
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import uvloop

from gateway_bench import progress, servers
from gateway_bench.servers import Server
from quire_api import wire

CLIENTS, STREAMS, STEP_S, RATE, EVENTS = 16, 64, 0.01, 200.0, 20
FEW_STREAMS, SLOW_RATE = 4, 5.0
_CPU_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_STAMP = re.compile(rb"\d{20}")
KNOWN, KNOWN_SERVER = "quire gateway, model known", "quire server"
GOALS = {
    "requests_per_cpu_s": 2500,
    "events_per_cpu_s": 20000,
    "added_p50_ms": 1.0,
    "added_p99_ms": 5.0,
    "litellm": 8.0,
}


@dataclass
class Seen:
    """What one server did under one load, over all rounds. Milliseconds."""

    times: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def at(self, share: float) -> float:
        ordered = sorted(self.times)
        return ordered[ceil(share * len(ordered)) - 1]


def _request(stream: bool, events: int, turn: int) -> bytes:
    body: dict[str, Any] = {
        "model": "m",
        "messages": [{"role": "user", "content": f"hello {turn}"}],
        "max_tokens": events,
    }
    if stream:
        body["stream"] = True
    data = json.dumps(body).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer none\r\n%b: %b\r\ncontent-length: %d\r\n\r\n%b"
        % (wire.HEADER_INTERNAL_KEY.encode(), servers.KEY.encode(), len(data), data)
    )


async def _read_whole(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    lines = head.lower().split(b"\r\n")
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), None)
    if length is not None:
        await reader.readexactly(length)
        return
    while (size := int(await reader.readline(), 16)) >= 0:
        await reader.readexactly(size + 2)
        if not size:
            return


async def requests(port: int, seconds: float) -> list[float]:
    """Times of requests that `CLIENTS` connections send back to back."""
    times: list[float] = []
    stop_at = time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < stop_at:
            began = time.perf_counter()
            writer.write(_request(False, 1, number))
            await _read_whole(reader)
            times.append((time.perf_counter() - began) * 1e3)
        writer.close()

    await asyncio.gather(*map(client, range(CLIENTS)))
    return times


async def _stream(
    port: int, events: int, delays: list[float], first: list[float], gaps: list[float] | None = None
) -> None:
    """One streamed chat: the delay of each event from the stub engine's write, and the time to the first event.

    gaps: time of each event since the one before, or since the request.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = last = time.perf_counter()
    writer.write(_request(True, events, 0))
    is_first = True
    while line := await reader.readline():
        if line.startswith(b'data: {"id"'):
            now = time.perf_counter()
            if is_first:
                first.append((now - began) * 1e3)
                is_first = False
            if gaps is not None:
                gaps.append((now - last) * 1e3)
            last = now
            # LiteLLM ends with an event of its own, which no engine wrote.
            if stamp := _STAMP.search(line):
                delays.append((time.monotonic_ns() - int(stamp[0])) / 1e6)
        elif line.startswith(b"data: [DONE]"):
            break
    writer.close()


async def streams(count: int, port: int, seconds: float) -> list[float]:
    """Delays of every event of `count` concurrent streams."""
    delays: list[float] = []
    events = max(2, round(seconds / STEP_S))
    await asyncio.gather(*(_stream(port, events, delays, []) for _ in range(count)))
    return delays


async def known_streams(port: int, seconds: float) -> list[float]:
    """Times between the events of as many streams of the real server, which writes no times into its events."""
    gaps: list[float] = []
    await asyncio.gather(*(_stream(port, max(2, round(seconds / STEP_S)), [], [], gaps) for _ in range(STREAMS)))
    return gaps


async def open_loop(rate: float, port: int, seconds: float) -> list[float]:
    """Times to the first event of chats that come at `rate`, for twice the time where they are few."""
    seconds *= 1 if rate == RATE else 2
    first: list[float] = []
    rng, loop = random.Random(1), asyncio.get_running_loop()
    began, due, tasks = loop.time(), 0.0, []
    while due < seconds:
        await asyncio.sleep(max(0.0, began + due - loop.time()))
        tasks.append(loop.create_task(_stream(port, EVENTS, [], first)))
        due += rng.expovariate(rate)
    await asyncio.gather(*tasks)
    return first


LOADS: dict[str, Callable[[int, float], Awaitable[list[float]]]] = {
    "requests": requests,
    "streams": partial(streams, STREAMS),
    "open": partial(open_loop, RATE),
    "few streams": partial(streams, FEW_STREAMS),
    "slow": partial(open_loop, SLOW_RATE),
}
KNOWN_LOADS: dict[str, Callable[[int, float], Awaitable[list[float]]]] = {
    "requests": requests,
    "streams": known_streams,
    "open": partial(open_loop, RATE),
}


async def _measure(seconds: float, rounds: int, with_litellm: bool) -> dict[str, Any]:
    seen: dict[tuple[str, str], Seen] = {}
    memory: dict[str, float] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = stack.enter_context(servers.engine(folder, STEP_S))
        measured: list[Server] = [engine]
        makers = [servers.forwarder, servers.nginx, servers.quire, *([servers.litellm] if with_litellm else [])]
        for make in makers:
            measured.append(stack.enter_context(make(folder, engine.port)))
        for server in measured:
            await _ready(server)
        for _ in progress.each("overhead", range(rounds)):
            for what, load in LOADS.items():
                for server in measured:
                    # LiteLLM is far from 200 streams a second: a queue that only grows says nothing of latency.
                    if what == "open" and server.name.startswith("LiteLLM"):
                        continue
                    await _take(seen, server, what, load, seconds)
        memory = {server.name: round(server.memory_mb(), 1) for server in measured[1:]}
    memory |= await _measure_known(seconds, rounds, seen)
    return _told(seen, memory, rounds)


async def _measure_known(seconds: float, rounds: int, seen: dict[tuple[str, str], Seen]) -> dict[str, float]:
    """The same of a gateway that knows the model; memory in MB."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(servers.quire_server(folder, STEP_S))
        await _ready(server)
        gateway = stack.enter_context(servers.quire(folder, server.port, KNOWN, servers.KEY))
        await _ready(gateway)
        for _ in progress.each("overhead, model known", range(rounds)):
            for what, load in KNOWN_LOADS.items():
                for each in (server, gateway):
                    await _take(seen, each, what, load, seconds)
        return {gateway.name: round(gateway.memory_mb(), 1)}


async def _take(
    seen: dict[tuple[str, str], Seen],
    server: Server,
    what: str,
    load: Callable[[int, float], Awaitable[list[float]]],
    seconds: float,
) -> None:
    one = seen.setdefault((server.name, what), Seen())
    cpu, began = server.cpu_s(), time.perf_counter()
    one.times += await load(server.port, seconds)
    one.wall_s += time.perf_counter() - began
    one.cpu_s += server.cpu_s() - cpu


async def _ready(server: Server) -> None:
    """The server answers through to the engine."""
    until = time.monotonic() + 600.0
    while True:
        try:
            async with asyncio.timeout(30.0):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(_request(False, 1, 0))
                await _read_whole(reader)
                writer.close()
                return
        except (AssertionError, OSError, TimeoutError, asyncio.IncompleteReadError):
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.5)


def _told(seen: dict[tuple[str, str], Seen], memory: dict[str, float], rounds: int) -> dict[str, Any]:
    rows = []
    for (name, what), one in seen.items():
        direct = seen[KNOWN_SERVER if name in (KNOWN, KNOWN_SERVER) else "engine", what]
        cpu_s = max(one.cpu_s, _CPU_TICK_S)
        row = {
            "server": name,
            "what": what,
            "count": len(one.times),
            "cpu_us": round(cpu_s / len(one.times) * 1e6, 1),
            "per_cpu_s": round(len(one.times) / cpu_s),
            "per_s": round(len(one.times) / one.wall_s),
        }
        row["p50_ms"] = round(statistics.median(one.times), 3)
        row["p99_ms"] = round(one.at(0.99), 3)
        if one is not direct:
            row["added_p50_ms"] = round(one.at(0.5) - direct.at(0.5), 3)
            row["added_p99_ms"] = round(one.at(0.99) - direct.at(0.99), 3)
        rows.append(row)
    told = {(row["server"], row["what"]): row for row in rows}
    ours = {what: told["quire gateway", what] for what in LOADS}
    ratios = [
        *_beside_goals("", ours),
        *_beside_goals("model known: ", {what: told[KNOWN, what] for what in KNOWN_LOADS}),
    ]
    for rival, what in (
        ("LiteLLM proxy", "requests"),
        ("LiteLLM proxy", "streams"),
        ("nginx", "requests"),
        ("nginx", "streams"),
    ):
        if (rival, what) in told:
            theirs = told[rival, what]
            ratios.append(
                f"{what} beside {rival}: {ours[what]['per_s'] / theirs['per_s']:.2f} x its rate, "
                f"{ours[what]['per_cpu_s'] / theirs['per_cpu_s']:.2f} x for each CPU-second"
            )
    for what, meaning in (
        ("few streams", f"an event of {FEW_STREAMS} streams"),
        ("slow", f"the first event at {SLOW_RATE:g} streams/s"),
    ):
        if ("LiteLLM proxy", what) in told:
            added = [
                f"{name} p50 {told[name, what]['added_p50_ms']} ms, p99 {told[name, what]['added_p99_ms']} ms"
                for name in ("quire gateway", "LiteLLM proxy")
            ]
            ratios.append(f"added to {meaning}: {'; '.join(added)}")
    return {
        "notes": [
            f"One process each, {rounds} rounds, {CLIENTS} connections (requests), {STREAMS} streams with an event "
            f"each {STEP_S * 1e3:g} ms (streams: `count` and times are of events), "
            f"{RATE:g} streamed chats a second (open), {FEW_STREAMS} streams, {SLOW_RATE:g} chats a second (slow). "
            f"64 streams are more than LiteLLM can follow: its delays there are a queue that grows while they last. "
            f"{servers.LITELLM}; nginx of Debian, buffering off, one worker. The engine is a stub that tells no model, "
            f"so that every proxy only forwards; `{KNOWN}` stands before the real server with a simulated engine "
            f"(`{KNOWN_SERVER}`: the same asked directly; streams: times between events), tokenises, looks into its "
            "index, notes blocks and takes comment lines out of streams."
        ],
        "goals": GOALS,
        "rows": rows,
        "memory_mb": memory,
        "ratios": ratios,
    }


def _beside_goals(which: str, ours: dict[str, dict[str, Any]]) -> list[str]:
    return [
        f"{which}requests for each CPU-second: {ours['requests']['per_cpu_s']:,} "
        f"(goal {GOALS['requests_per_cpu_s']:,})",
        f"{which}events for each CPU-second, of {STREAMS} streams: {ours['streams']['per_cpu_s']:,} "
        f"(goal {GOALS['events_per_cpu_s']:,})",
        f"{which}added to the first event at {RATE:g} streams/s: p50 {ours['open']['added_p50_ms']} ms, "
        f"p99 {ours['open']['added_p99_ms']} ms (goals {GOALS['added_p50_ms']:g}, {GOALS['added_p99_ms']:g})",
    ]


def measure(seconds: float, rounds: int, with_litellm: bool) -> dict[str, Any]:
    return uvloop.run(_measure(seconds, rounds, with_litellm))
