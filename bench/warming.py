"""A second engine joins a busy one behind a gateway, cold or warmed first: two real engines, with and without a GPU.

    python bench/warming.py --model DIR --devices 0 1 --output FILE [-- --load-format dummy ...]
    python bench/warming.py --model models/quire-tiny --devices cpu cpu --personas 8 --persona-tokens 512 --rate 4

DIR holds config.json and a tokenizer; what follows `--` goes to both engines. Requests arrive at --rate a second
(Poisson): one of --personas system prompts of --persona-tokens tokens, the n-th asked for 1 / n as often as the first,
--own-tokens own tokens, --output-tokens out. The first engine has computed all system prompts. In each round a new
gateway and a new second engine begin; requests count that arrive in the --window seconds after the second became known
to the gateway. Rounds are cold, warmed, warmed, cold, ...; a pair gets the same requests at the same times.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec

from gateway_bench.servers import free_port
from quire_api import wire
from quire_api.wire import HEADER_INTERNAL_KEY, HEADER_REPLICA

KEY = "warming"
START_S, PATIENCE_S = 300.0, 120.0
SETTLE_S = 5.0
"""Of requests to the first engine alone, before the second becomes known."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request of the window; TTFT and arrival in seconds, arrival from when the second engine became known."""

    replica: str
    arrived_s: float
    ttft_s: float
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Round:
    """How the second engine joined. new_*: of its own requests; the others: of both engines'."""

    is_warmed: bool
    seed: int
    routable_after_s: float
    requests: int
    new_requests: int
    new_hit_rate: float
    new_ttft_mean_s: float
    new_ttft_p90_s: float
    hit_rate: float
    ttft_mean_s: float
    ttft_p90_s: float


@contextlib.asynccontextmanager
async def child(command: Sequence[str], log: Path, env: dict[str, str]) -> AsyncIterator[Process]:
    """A process, ended afterwards; its standard output and error go to `log`."""
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(*command, stdout=file, stderr=file, env={**os.environ, **env})
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(30):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def engine(options: argparse.Namespace, number: int, folder: Path) -> AsyncIterator[str]:
    """The base URL of a ready engine on the device of that number."""
    port, device = free_port(), options.devices[number]
    command = [sys.executable, "-m", "quire", "serve", str(options.model), "--served-model-name", "m"]
    command += ["--host", "127.0.0.1", "--port", str(port), *options.engine]
    env = {"QUIRE_INTERNAL_KEY": KEY}
    if device == "cpu":
        command += ["--device", "cpu", "--dtype", "float32"]
        env["OMP_NUM_THREADS"] = "1"
    else:
        env["CUDA_VISIBLE_DEVICES"] = device
    log = folder / f"engine-{number}.log"
    async with child(command, log, env) as process, httpx.AsyncClient(timeout=PATIENCE_S) as http:
        url = f"http://127.0.0.1:{port}"
        await _until(lambda: _is_ok(http, f"{url}/ready"), process, log)
        yield url


@contextlib.asynccontextmanager
async def gateway(folder: Path, table: Path, is_warming: bool) -> AsyncIterator["Gateway"]:
    port, log = free_port(), folder / "gateway.log"
    command = [sys.executable, "-m", "quire_gateway", "--port", str(port), "--routing-table", str(table)]
    command += ["--internal-key", KEY, "--access-log", "", *([] if is_warming else ["--warm-timeout-s", "0"])]
    async with child(command, log, {}) as process, httpx.AsyncClient(timeout=PATIENCE_S) as http:
        yield Gateway(f"http://127.0.0.1:{port}", process, log, http)


async def _is_ok(http: httpx.AsyncClient, url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return (await http.get(url)).status_code == 200
    return False


@dataclass(frozen=True)
class Gateway:
    url: str
    process: Process
    log: Path
    http: httpx.AsyncClient

    async def until_routable(self, name: str) -> None:
        async def is_routable() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                told = await self.http.get(f"{self.url}/internal/v1/replicas", headers={HEADER_INTERNAL_KEY: KEY})
                if told.status_code == 200:
                    report = msgspec.json.decode(told.content, type=wire.GatewayReport)
                    return any(each.replica == name and each.is_routable for each in report.replicas)
            return False

        await _until(is_routable, self.process, self.log)


async def _until(is_so: Callable[[], Awaitable[bool]], process: Process, log: Path) -> None:
    until = time.monotonic() + START_S
    while not await is_so():
        if process.returncode is not None or time.monotonic() > until:
            words = await asyncio.to_thread(log.read_text)
            raise RuntimeError(f"it is not ready: {words[-2000:]}")
        await asyncio.sleep(0.05)


def publish(table: Path, urls: dict[str, str]) -> None:
    replicas = [wire.Replica(id=name, url=url) for name, url in urls.items()]
    deployment = wire.Deployment(name="d", namespace="n", served_names=["m"], internal_key=KEY, replicas=replicas)
    written = table.with_suffix(".new")
    written.write_bytes(msgspec.json.encode(wire.RoutingTable(deployments=[deployment])))
    written.replace(table)


class Prompts:
    """Token ids of system prompts and of what comes after them; ids of any vocabulary of 2,000 and more."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        rng = random.Random(1)
        self.personas = [self._tokens(rng, options.persona_tokens) for _ in range(options.personas)]
        self._weights = [1 / (rank + 1) for rank in range(options.personas)]

    def draw(self, rng: random.Random) -> list[int]:
        (persona,) = rng.choices(self.personas, self._weights)
        return [*persona, *self._tokens(rng, self._options.own_tokens)]

    @staticmethod
    def _tokens(rng: random.Random, count: int) -> list[int]:
        return [rng.randrange(400, 1500) for _ in range(count)]


async def ask(http: httpx.AsyncClient, url: str, prompt: list[int], max_tokens: int, since: float) -> Answer:
    body = {
        "model": "m",
        "prompt": prompt,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, first = time.monotonic(), 0.0
    usage: dict[str, Any] = {}
    async with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first = first or time.monotonic()
                usage = json.loads(line[6:]).get("usage") or usage
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Answer(answer.headers[HEADER_REPLICA], began - since, first - began, usage["prompt_tokens"], cached)


async def measure(
    options: argparse.Namespace, prompts: Prompts, folder: Path, first: str, is_warmed: bool, seed: int
) -> Round:
    """One round."""
    table = folder / "table.json"
    publish(table, {"first": first})
    rng = random.Random(seed)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with (
        engine(options, 1, folder) as second,
        gateway(folder, table, is_warmed) as door,
        httpx.AsyncClient(timeout=PATIENCE_S, limits=limits) as http,
    ):
        await door.until_routable("first")
        since = time.monotonic() + SETTLE_S
        asked: list[asyncio.Task[Answer]] = []

        async def load() -> None:
            at = since - SETTLE_S
            while at < since + options.window:
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                asked.append(asyncio.create_task(ask(http, door.url, prompts.draw(rng), options.output_tokens, since)))
                at += rng.expovariate(options.rate)

        loading = asyncio.create_task(load())
        await asyncio.sleep(SETTLE_S)
        publish(table, {"first": first, "second": second})
        await door.until_routable("second")
        routable_after_s = time.monotonic() - since
        await loading
        answers = [answer for answer in await asyncio.gather(*asked) if answer.arrived_s >= 0]
    new = [answer for answer in answers if answer.replica == "second"]
    return Round(
        is_warmed,
        seed,
        round(routable_after_s, 3),
        len(answers),
        len(new),
        *_figures(new),
        *_figures(answers),
    )


def _figures(answers: Sequence[Answer]) -> tuple[float, float, float]:
    """Cached of all prompt tokens, mean TTFT, p90 of it; NaN where nothing was asked."""
    if not answers:
        return (float("nan"),) * 3
    ttft = sorted(answer.ttft_s for answer in answers)
    hit_rate = sum(answer.cached_tokens for answer in answers) / sum(answer.prompt_tokens for answer in answers)
    p90 = ttft[min(len(ttft) - 1, int(0.9 * len(ttft)))]
    return round(hit_rate, 4), round(statistics.fmean(ttft), 4), round(p90, 4)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    prompts, rounds = Prompts(options), []
    with tempfile.TemporaryDirectory() as folder:
        async with engine(options, 0, Path(folder)) as first, httpx.AsyncClient(timeout=PATIENCE_S) as http:
            headers = {HEADER_INTERNAL_KEY: KEY}
            for persona in prompts.personas:
                body = {"model": "m", "prompt": persona, "max_tokens": 1}
                (await http.post(f"{first}/v1/completions", json=body, headers=headers)).raise_for_status()
            for pair in range(options.pairs):
                for is_warmed in (False, True) if pair % 2 == 0 else (True, False):
                    found = await measure(options, prompts, Path(folder), first, is_warmed, pair)
                    print(json.dumps(asdict(found)), flush=True)
                    rounds.append(asdict(found))
            return {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": " ".join(["bench/warming.py", *sys.argv[1:]]),
                "device": _device(options),
                "workload": {
                    name: getattr(options, name)
                    for name in ("personas", "persona_tokens", "own_tokens", "output_tokens", "rate", "window")
                },
                "rounds": rounds,
            }


def _device(options: argparse.Namespace) -> str:
    if options.devices[0] == "cpu":
        return f"{os.cpu_count()} CPUs, {platform.machine()}"
    import torch

    return torch.cuda.get_device_name(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--devices", nargs=2, default=["0", "1"], help="CUDA devices of the engines, or cpu cpu")
    parser.add_argument("--personas", type=int, default=40)
    parser.add_argument("--persona-tokens", type=int, default=3000)
    parser.add_argument("--own-tokens", type=int, default=300)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second")
    parser.add_argument("--window", type=float, default=30.0, help="seconds")
    parser.add_argument("--pairs", type=int, default=2, help="of a cold and a warmed round")
    parser.add_argument("--output", type=Path)
    parser.add_argument("engine", nargs="*", help="flags for `quire serve`, after --")
    options = parser.parse_args()
    result = asyncio.run(run(options))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
