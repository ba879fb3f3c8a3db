"""What clients notice while things die: 200 concurrent streams through two gateways to four simulated engines.

Real processes and sockets: the engines' real HTTP server with a simulated engine inside, reached through a process that
copies bytes (the network), and two real gateways. One kind of trouble after the other, all for the same time:

gateway   a gateway is killed (-9) every 10 s, and is back within a moment; who cannot connect goes to the other one
drain     a gateway is told to end (SIGTERM) every 10 s or, if that takes longer, as soon as the last one is back; a
          second later clients choose the other one, until it is ready again: as behind a Service
kill      an engine is killed (-9) every 10 s, and is back within a moment
freeze    an engine is stopped (SIGSTOP) for 5 s, every 10 s
network   no byte passes between an engine and the gateways for 5 s, every 10 s
events    all KV event streams of an engine end, every 5 s

Gateways die first, so that those which are looked at in the end have been through all else.

Clients send nothing again: a connection that breaks is a failed request, as for any client in mid-stream. One that
broke before the answer began is counted apart, for there the OpenAI client would have tried again by itself.

A request has failed if it was not answered with 200, its stream ended with an error or before [DONE], or its text or
its token count is not what an undisturbed engine gives. Before and after are compared once all streams have
ended and idle connections have been closed; the blocks that each gateway knows, with those that the engines hold.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
from prometheus_client.parser import text_string_to_metric_families

from gateway_bench import progress
from gateway_bench.servers import HERE, free_port
from quire_api import wire
from quire_api.wire import HEADER_INTERNAL_KEY

KINDS = ("none", "gateway", "drain", "kill", "freeze", "network", "events")
GATEWAYS = ("gateway0", "gateway1")
STREAMS, ENGINES, TOKENS, GAP_S = 200, 4, 40, 0.2
EVERY_S, PAUSE_S = 10.0, 5.0
GRACE_S, NOTICED_S = 2.0, 1.0
"""In which a gateway that was told to end takes new requests; after which nobody sends it any."""
KEY = "chaos"
PATIENCE_S = 120.0
START_S = 600.0
"""Processes that import much, on a machine that does much else."""
SETTLES_S = 90.0
"""Engines close connections that have been idle for 75 s; gateways keep them until then."""


@dataclass
class Fleet:
    """The processes by name, to be killed and started again under the same ports."""

    folder: Path
    ports: dict[str, int] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    """Requests that clients have at each gateway now."""
    leaving: set[str] = field(default_factory=set)
    """Gateways that clients do not choose."""

    def build(self) -> None:
        names = [f"{what}{number}" for what in ("engine", "network") for number in range(ENGINES)]
        for name in (*names, *GATEWAYS):
            self.ports[name] = free_port()
        replicas = []
        for number in range(ENGINES):
            engine, network = self.ports[f"engine{number}"], self.ports[f"network{number}"]
            module = [sys.executable, "-m"]
            self.commands[f"engine{number}"] = [*module, "gateway_bench.chaos_engine", str(engine), KEY, str(GAP_S)]
            self.commands[f"network{number}"] = [*module, "gateway_bench.stub", "forward", str(engine), str(network)]
            replicas.append(wire.Replica(id=f"engine{number}", url=f"http://127.0.0.1:{network}"))
        deployment = wire.Deployment(name="d", namespace="n", served_names=["m"], internal_key=KEY, replicas=replicas)
        table = self.folder / "table.json"
        table.write_bytes(msgspec.json.encode(wire.RoutingTable(deployments=[deployment])))
        for number in (0, 1):
            port = str(self.ports[f"gateway{number}"])
            flags = ["--port", port, "--routing-table", str(table), "--internal-key", KEY]
            flags += ["--drain-grace-s", str(GRACE_S)]
            log = str(self.folder / f"access{number}.jsonl")
            self.commands[f"gateway{number}"] = [sys.executable, "-m", "quire_gateway", *flags, "--access-log", log]
        for name in self.commands:
            self.start(name)

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                self.commands[name], stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(HERE)}
            )

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()

    def send(self, name: str, sent: signal.Signals) -> None:
        self.running[name].send_signal(sent)

    def close(self) -> None:
        for name in self.running:
            self.kill(name)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"


@dataclass
class Tally:
    """Requests that ended under one kind of trouble, by how."""

    strikes: int = 0
    requests: int = 0
    orphaned: int = 0
    """Requests that a gateway had when it was killed: their connections died with it."""
    ends: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)


async def measure(seconds: float, kinds: list[str], streams: int = STREAMS) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder))
        try:
            fleet.build()
            return await _measure(fleet, seconds, kinds, streams)
        finally:
            fleet.close()


async def _measure(fleet: Fleet, seconds: float, kinds: list[str], streams: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=streams)
    tallies = {kind: Tally() for kind in kinds}
    memory: list[tuple[str, list[float]]] = []
    kind, is_over = kinds[0], False
    rng = random.Random(2)
    async with httpx.AsyncClient(timeout=PATIENCE_S, limits=limits) as http:
        await _until_ready(fleet, http)
        expected = await _expected(fleet, http)
        before = await _state(fleet, http)

        async def client() -> None:
            while not is_over:
                end = await _ask(fleet, http, rng, expected, may_move=kind == "gateway")
                tally = tallies[kind]
                tally.requests += 1
                tally.ends[end.partition(":")[0]] += 1
                if end != "whole":
                    tally.words[end] += 1

        clients = [asyncio.ensure_future(client()) for _ in range(streams)]
        for kind in progress.each("chaos", kinds):
            print(f"chaos: {kind} ...", flush=True)
            until = time.monotonic() + seconds / len(kinds)
            while time.monotonic() < until:
                tallies[kind].strikes += kind != "none"
                await _strike(fleet, http, kind, tallies[kind], rng)
            memory.append((kind, [_memory_mb(fleet.running[name]) for name in GATEWAYS]))
        is_over = True
        await asyncio.gather(*clients)
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        await _until_ready(fleet, http)
        after = await _settled(fleet, http, before)
    return {
        "notes": [
            f"{streams} concurrent streams of {TOKENS} tokens, one each {GAP_S * 1e3:g} ms, {ENGINES} simulated "
            f"engines, two gateways, {seconds:g} s in all. Requests count under the kind that was on when they ended."
        ],
        "kinds": [
            {
                "kind": kind,
                "strikes": tally.strikes,
                "requests": tally.requests,
                "failed": tally.requests - tally.ends["whole"],
                "refused": tally.ends["refused"],
                "broken": tally.ends["broken"] + tally.ends["wrong"],
                "cut": tally.ends["cut"] + tally.ends["unanswered"],
                "unanswered": tally.ends["unanswered"],
                "orphaned": tally.orphaned,
                "words": dict(tally.words.most_common(5)),
            }
            for kind, tally in tallies.items()
        ],
        "memory_mb": memory,
        "leaks": [[name, before.get(name, ""), value] for name, value in after.items()],
    }


async def _strike(fleet: Fleet, http: httpx.AsyncClient, kind: str, tally: Tally, rng: random.Random) -> None:
    """One piece of trouble, and the rest until the next."""
    engine = rng.randrange(ENGINES)
    began = time.monotonic()
    if kind == "drain":
        name = f"gateway{rng.randrange(2)}"
        fleet.send(name, signal.SIGTERM)
        await asyncio.sleep(NOTICED_S)
        fleet.leaving.add(name)
        await asyncio.to_thread(fleet.running[name].wait)
        fleet.start(name)
        await _until_ready(fleet, http, [name])
        fleet.leaving.remove(name)
        await asyncio.sleep(max(0.0, began + EVERY_S - time.monotonic()))
    elif kind in ("kill", "gateway"):
        name = f"engine{engine}" if kind == "kill" else f"gateway{rng.randrange(2)}"
        tally.orphaned += fleet.asked[name]
        fleet.kill(name)
        await asyncio.sleep(0.5)
        fleet.start(name)
        await asyncio.sleep(EVERY_S - 0.5)
    elif kind in ("freeze", "network"):
        name = f"engine{engine}" if kind == "freeze" else f"network{engine}"
        fleet.send(name, signal.SIGSTOP)
        await asyncio.sleep(PAUSE_S)
        fleet.send(name, signal.SIGCONT)
        await asyncio.sleep(EVERY_S - PAUSE_S)
    else:
        if kind == "events":
            fleet.send(f"engine{engine}", signal.SIGUSR1)
        await asyncio.sleep(PAUSE_S)


async def _ask(fleet: Fleet, http: httpx.AsyncClient, rng: random.Random, expected: str, may_move: bool) -> str:
    """One streamed request: `whole`, or how it failed and in what words.

    `refused`, `broken`, `wrong`; its connection broke: `unanswered`, no answer had begun, or else `cut`.
    """
    gateways = [name for name in GATEWAYS if name not in fleet.leaving]
    rng.shuffle(gateways)
    end = "unanswered"
    for name in gateways if may_move else gateways[:1]:
        fleet.asked[name] += 1
        end = await _ask_one(fleet.url(name), http, expected)
        fleet.asked[name] -= 1
        # A connection that was never made is anybody's to make anew, as a Service would.
        if end != "unanswered: ConnectError":
            break
    return end


async def _ask_one(url: str, http: httpx.AsyncClient, expected: str) -> str:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": f"question {random.random()}{' and so on' * 10}"}],
        "max_tokens": TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, usage = "", 0
    broken = "unanswered"
    try:
        async with http.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return f"refused: {answer.status_code} {(await answer.aread())[:160]!r}"
            broken = "cut"
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return "whole" if (text, usage) == (expected, TOKENS) else f"wrong: {usage} tokens"
                if not line.startswith("data: "):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return f"broken: {event['error'].get('code')}"
                usage = (event.get("usage") or {}).get("completion_tokens", usage)
                text += "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
            return "cut: ended before [DONE]"
    except httpx.HTTPError as error:
        return f"{broken}: {type(error).__name__}"


async def _expected(fleet: Fleet, http: httpx.AsyncClient) -> str:
    """The text of an undisturbed engine, asked directly."""
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": TOKENS}
    headers = {HEADER_INTERNAL_KEY: KEY}
    answer = await http.post(f"{fleet.url('engine0')}/v1/chat/completions", json=body, headers=headers)
    return str(answer.json()["choices"][0]["message"]["content"])


async def _until_ready(fleet: Fleet, http: httpx.AsyncClient, gateways: Sequence[str] = GATEWAYS) -> None:
    """The gateways route to every engine."""
    until = time.monotonic() + START_S
    for gateway in gateways:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                told = await http.get(f"{fleet.url(gateway)}/internal/v1/replicas", headers={HEADER_INTERNAL_KEY: KEY})
                if told.status_code == 200:
                    report = msgspec.json.decode(told.content, type=wire.GatewayReport)
                    if sum(replica.is_routable for replica in report.replicas) == ENGINES:
                        break
            if time.monotonic() > until:
                raise RuntimeError(f"{gateway} does not reach all engines: {fleet.folder}")
            await asyncio.sleep(0.2)


async def _settled(fleet: Fleet, http: httpx.AsyncClient, before: dict[str, Any]) -> dict[str, Any]:
    """The state once it is no more than `before`, but for memory; else as it is after `SETTLES_S`."""
    until = time.monotonic() + SETTLES_S
    while True:
        await asyncio.sleep(5.0)
        after = await _state(fleet, http)
        grown = [name for name in after if not name.endswith("MB") and float(after[name]) > float(before[name])]
        if not grown or time.monotonic() > until:
            return after


async def _state(fleet: Fleet, http: httpx.AsyncClient) -> dict[str, Any]:
    """What must not have grown: memory, sockets, requests that somebody still counts, blocks that nobody holds."""
    state: dict[str, Any] = {}
    held: dict[str, float] = {}
    known: dict[str, dict[str, float]] = {}
    for name, process in fleet.running.items():
        seen = psutil.Process(process.pid)
        if name.startswith("gateway"):
            state[f"{name} memory MB"] = _memory_mb(process)
            told = await http.get(f"{fleet.url(name)}/internal/v1/replicas", headers={HEADER_INTERNAL_KEY: KEY})
            report = msgspec.json.decode(told.content, type=wire.GatewayReport)
            state[f"{name} in flight"] = sum(replica.in_flight for replica in report.replicas)
            state[f"{name} queued tokens"] = sum(replica.queued_tokens for replica in report.replicas)
            found = await _metrics(fleet, http, name, "quire_gateway_index_replica_blocks")
            known[name] = {labels["replica"]: value for labels, value in found}
        if name.startswith("engine"):
            [(_, state[f"{name} running"])] = await _metrics(fleet, http, name, "vllm:num_requests_running")
            [(_, held[name])] = await _metrics(fleet, http, name, "quire:kv_blocks_used")
        state[f"{name} descriptors"] = seen.num_fds()
    for name, blocks in known.items():
        state[f"{name} blocks unlike the engines'"] = sum(abs(blocks.get(each, 0.0) - held[each]) for each in held)
    return state


def _memory_mb(process: "subprocess.Popen[bytes]") -> float:
    return round(psutil.Process(process.pid).memory_info().rss / 2**20, 1)


async def _metrics(fleet: Fleet, http: httpx.AsyncClient, name: str, metric: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each sample of one metric of a process."""
    page = (await http.get(f"{fleet.url(name)}/metrics", headers={HEADER_INTERNAL_KEY: KEY})).text
    families = text_string_to_metric_families(page)
    return [(each.labels, each.value) for family in families for each in family.samples if each.name == metric]
