"""How soon gateways know of one another: two gateways before one engine, one of which is killed, started and stopped.

What the other gateway knows is read where users read it, at /debug/route: the requests in flight at the replica, of all
gateways. Each round holds streams open through the first gateway and asks the second one every few milliseconds:

request   from sending a request through the first to its being counted at the second
killed    from `kill -9` of the first to its requests being forgotten
started   from the start of a new first gateway to its knowing the second one's requests: with the start of the process,
          and from the moment that it accepts connections
frozen    from SIGSTOP of the first to its requests being forgotten (no connection breaks: it is found by its silence)
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import httpx
import msgspec

from gateway_bench import progress
from gateway_bench.servers import engine, free_port
from quire_api import wire
from quire_api.wire import HEADER_INTERNAL_KEY

KEY = "convergence"
HEADERS = {HEADER_INTERNAL_KEY: KEY}
STREAMS = 20
EVERY_S = 0.005
PATIENCE_S = 120.0
STEP_S = 0.05
BODY = {"model": "m", "prompt": "x", "max_tokens": 1_000_000, "stream": True}


@dataclass
class Pair:
    """Two gateways that are peers; the first of them comes and goes."""

    folder: Path
    ports: list[int]
    processes: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, number: int) -> None:
        peers = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        flags = ["--port", str(self.ports[number]), "--routing-table", str(self.folder / "table.json")]
        command = [sys.executable, "-m", "quire_gateway", *flags, "--peers", peers, "--access-log", ""]
        with (self.folder / f"gateway{number}.log").open("ab") as log:
            env = {**os.environ, "QUIRE_INTERNAL_KEY": KEY}
            self.processes[number] = subprocess.Popen(command, stderr=log, env=env)

    def kill(self, number: int) -> None:
        self.processes[number].kill()
        self.processes[number].wait()

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.ports[number]}"


async def measure(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, engine(Path(name), STEP_S) as stub:
        folder = Path(name)
        replica = wire.Replica(id="stub", url=f"http://127.0.0.1:{stub.port}")
        deployment = wire.Deployment(name="d", namespace="n", served_names=["m"], replicas=[replica])
        (folder / "table.json").write_bytes(msgspec.json.encode(wire.RoutingTable(deployments=[deployment])))
        pair = Pair(folder, [free_port(), free_port()])
        taken: dict[str, list[float]] = {}
        try:
            pair.start(0)
            pair.start(1)
            async with httpx.AsyncClient(timeout=PATIENCE_S, limits=httpx.Limits(max_connections=None)) as http:
                for _ in progress.each("convergence", range(rounds)):
                    await _round(pair, http, taken)
        finally:
            for number in pair.processes:
                pair.kill(number)
    return {
        "notes": [
            f"{rounds} rounds with {STREAMS} streams in flight; what a gateway knows is asked every "
            f"{EVERY_S * 1e3:g} ms at /debug/route, over HTTP. Counts are told every 25 ms, names are looked up every "
            "second, a peer that is silent for 1.5 s is given up."
        ],
        "rows": [
            {"what": what, "p50_ms": _ms(sorted(each)[ceil(len(each) / 2) - 1]), "most_ms": _ms(max(each))}
            for what, each in taken.items()
        ],
    }


async def _round(pair: Pair, http: httpx.AsyncClient, taken: dict[str, list[float]]) -> None:
    def took(what: str, since: float) -> None:
        taken.setdefault(what, []).append(time.perf_counter() - since)

    for number in (0, 1):
        await _until(lambda number=number: _counts(pair, number, http, 0))
    # Counts of nothing tell as much where a gateway that has just started is not heard yet.
    heard = _Streams(pair.url(0), http)
    heard.open(1)
    await _until(lambda: _counts(pair, 1, http, 1))
    await heard.close()
    await _until(lambda: _counts(pair, 1, http, 0))

    streams = _Streams(pair.url(0), http)
    began = time.perf_counter()
    streams.open(1)
    await _until(lambda: _counts(pair, 1, http, 1))
    took("a request at one is counted at the other", began)
    streams.open(STREAMS - 1)
    await _until(lambda: _counts(pair, 1, http, STREAMS))

    began = time.perf_counter()
    pair.processes[0].send_signal(signal.SIGSTOP)
    await _until(lambda: _counts(pair, 1, http, 0))
    took("frozen: its requests are forgotten", began)
    pair.processes[0].send_signal(signal.SIGCONT)
    await _until(lambda: _counts(pair, 1, http, STREAMS))

    began = time.perf_counter()
    pair.processes[0].kill()
    await _until(lambda: _counts(pair, 1, http, 0))
    took("killed: its requests are forgotten", began)
    pair.kill(0)
    await streams.close()

    streams = _Streams(pair.url(1), http)
    streams.open(STREAMS)
    await _until(lambda: _counts(pair, 1, http, STREAMS))
    began = time.perf_counter()
    pair.start(0)
    await _until(lambda: _accepts(pair.ports[0]))
    opened = time.perf_counter()
    await _until(lambda: _counts(pair, 0, http, STREAMS))
    took("started: it knows the other's requests, since its process began", began)
    took("started: the same, since it accepted connections", opened)
    await streams.close()


class _Streams:
    """Streams that stay open through one gateway until `close`, or its end."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self._url = url
        self._http = http
        self._tasks: list[asyncio.Task[None]] = []

    def open(self, count: int) -> None:
        self._tasks += [asyncio.create_task(self._stay()) for _ in range(count)]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _stay(self) -> None:
        with contextlib.suppress(httpx.HTTPError):
            async with self._http.stream("POST", f"{self._url}/v1/completions", json=BODY) as answer:
                async for _ in answer.aiter_raw():
                    pass


async def _counts(pair: Pair, number: int, http: httpx.AsyncClient, count: int) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        answer = await http.get(f"{pair.url(number)}/debug/route?model=m&prompt=x", headers=HEADERS)
        if answer.status_code == 200:
            told = msgspec.json.decode(answer.content, type=wire.RouteExplanation)
            return bool(told.chosen) and sum(each.in_flight for each in told.replicas) == count
    return False


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(EVERY_S)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 1)
