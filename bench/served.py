"""One OpenAI server on this machine, ours or vLLM's, under W1 and Poisson arrivals: a JSON line a repetition.

    python bench/served.py --engine quire --version 0.2.0 --model m-8b --run 2026-11-27-h200-1 --kernel-cache filled \\
        --plan w1:3,poisson:11 --out bench/results/http.jsonl -- quire serve /tmp/quire-bench-models/m-8b \\
        --served-model-name m-8b --host 127.0.0.1 --port 8000 --load-format dummy --dtype bfloat16 \\
        --max-model-len 4096 --gpu-memory-utilization 0.85

The command is what a user would type, `env NAME=VALUE` before it included; bench/report_http.py shows that and what
follows 0.85. Its directory holds config.json and a tokenizer. A line `startup` tells when /health answered and when the
first streamed token came, from the spawn on, and whether this Python's packages had bytecode: without it, each start
compiles them. w1: 256 requests at once (bench/workloads.py), token ids in, each time with others. poisson:R: requests
of W1's lengths, R a second for --seconds; those of the first --ramp do not count. Servers of one run are asked the
same, at the same times. Before the first of them the server is warmed up with W1's prompts at 32 tokens. TTFT counts
from when a request was due; ITL is between events, so tokens per event stand beside it. `server_cpu_s`: CPU seconds of
the server's processes, of which the engine's are known by --engine-process.
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import workloads
from gpu import commit
from http_clients import Answered, Asked, Load, ask

ENGINE_PROCESSES = {"quire": "quire_runtime.engine", "vllm": "EngineCore"}
"""What the engine's process has in its command line or title."""
WARM_UP_TOKENS = 32
POISSON = 500
"""Repetitions of Poisson arrivals are numbered from here on."""
BYTECODE_OF = ("torch", "fastapi", "pydantic")
PATIENCE_S = 10.0
"""For a server's end after SIGTERM."""


def w1(rep: int, options: argparse.Namespace) -> list[Asked]:
    """W1, or of it the first requests with divided lengths, for machines that are slower than a GPU."""
    return [
        Asked(
            [token % options.vocabulary for token in prompt[: len(prompt) // options.divide]], count // options.divide
        )
        for prompt, count in workloads.w1(rep)[: options.first]
    ]


def poisson(rate: float, rep: int, options: argparse.Namespace) -> list[Asked]:
    """W1's lengths in turn, with ids of their own, at random times within --seconds."""
    rng, due_s, lengths, found = random.Random(4_242_000 + rep), 0.0, w1(rep, options), []
    while (due_s := due_s + rng.expovariate(rate)) < options.seconds:
        like = lengths[len(found) % len(lengths)]
        found.append(Asked([rng.randrange(options.vocabulary) for _ in like.prompt], like.tokens, due_s))
    return found


def reading(load: Load, counts_from_s: float = 0.0, gaps_until_s: float = math.inf) -> dict[str, Any]:
    """What a line says of a load. Distributions are of requests that were due from `counts_from_s` on, and of gaps that
    end before `gaps_until_s`, both from the beginning; counts are of all."""
    good = [answer for answer in load.answers if not answer.problem]
    counted = [answer for answer in good if answer.due_s >= counts_from_s]
    tokens, events = sum(answer.output_tokens for answer in good), sum(len(answer.events_s) for answer in good)
    found: dict[str, Any] = {
        "requests": len(load.answers),
        "ok": len(good),
        "bad": len(load.answers) - len(good),
        "wall_s": round(load.wall_s, 4),
        "prompt_tokens": sum(answer.prompt_tokens for answer in good),
        "output_tokens": tokens,
        "output_tok_s": round(tokens / load.wall_s, 1),
        "events": events,
        "tokens_per_event": round(tokens / events, 4) if events else None,
        "ttft_ms": spread(1e3 * answer.events_s[0] for answer in counted),
        "itl_ms": spread(
            1e3 * (after - before)
            for answer in counted
            for before, after in zip(answer.events_s, answer.events_s[1:], strict=False)
            if answer.due_s + after <= gaps_until_s
        ),
        "tpot_ms": spread(1e3 * _tpot_s(answer) for answer in counted if answer.output_tokens > 1),
        "e2e_s": spread(answer.end_s for answer in counted),
        "gen_cpu_busiest": round(load.busiest, 3),
    }
    if problems := [answer.problem for answer in load.answers if answer.problem]:
        found["errors"] = problems[:5]
    return found


def _tpot_s(answer: Answered) -> float:
    return (answer.events_s[-1] - answer.events_s[0]) / (answer.output_tokens - 1)


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """Nearest-rank quantiles and the largest; None of nothing."""
    ranked = sorted(values)
    if not ranked:
        return None
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(ranked[max(math.ceil(share * len(ranked)) - 1, 0)], 3) for name, share in shares.items()}


def has_bytecode(packages: Iterable[str]) -> bool:
    """Whether this Python finds bytecode of each; none is imported."""
    found = [importlib.util.find_spec(package) for package in packages]
    return all(spec is not None and spec.cached is not None and Path(spec.cached).exists() for spec in found)


class Server:
    """A server's processes, from the spawn on."""

    def __init__(self, command: Sequence[str], log: Path, engine_process: str) -> None:
        self.port = int(command[command.index("--port") + 1])
        self._engine_process, self._log = engine_process, log
        self.has_bytecode = has_bytecode(BYTECODE_OF)
        self._began = time.monotonic()
        with log.open("w") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)

    def start(self, model: str, within_s: float) -> tuple[float, float]:
        """Seconds from the spawn until /health answered 200, and until the first token of a prompt of 16 came; a server
        that is alive may still refuse while it loads."""
        address = f"http://127.0.0.1:{self.port}"
        asked = {"model": model, "prompt": list(range(16)), "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        health_s = None
        while self._process.poll() is None and self._passed_s() < within_s:
            try:
                if health_s is None and httpx.get(f"{address}/health", timeout=within_s).status_code == 200:
                    health_s = self._passed_s()
                if health_s is not None:
                    given = {**asked, "stream": True}
                    with httpx.stream("POST", f"{address}/v1/completions", json=given, timeout=within_s) as answer:
                        if any(line.startswith("data: ") for line in answer.iter_lines()):
                            return health_s, self._passed_s()
            except httpx.HTTPError:
                pass
            time.sleep(0.02)
        raise SystemExit(f"The server gave no token. Its last words:\n{self._log.read_text()[-2000:]}")

    def _passed_s(self) -> float:
        return time.monotonic() - self._began

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds until now: of the engine's processes, and of all others."""
        found = {"front end": 0.0, "engine": 0.0}
        whole = psutil.Process(self._process.pid)
        for process in (whole, *whole.children(recursive=True)):
            try:
                name = " ".join([process.name(), *process.cmdline()])
                times = process.cpu_times()
            except psutil.Error:
                continue
            found["engine" if self._engine_process in name else "front end"] += times.user + times.system
        return found

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def measure(server: Server, options: argparse.Namespace, tell: Callable[..., None]) -> None:
    health_s, first_s = server.start(options.model, options.start_s)
    times = {"health_s": round(health_s, 2), "first_token_s": round(first_s, 2)}
    tell("startup", **times, kernel_cache=options.kernel_cache, bytecode=server.has_bytecode)
    base = 1000 * random.Random(options.run).randrange(1, 900)
    warm = [Asked(asked.prompt, min(asked.tokens, WARM_UP_TOKENS)) for asked in w1(base, options)]
    ask(server.port, options.model, warm, options.processes)
    done = {"w1": 0, "poisson": 0}
    for part in options.plan.split(","):
        step, _, value = part.partition(":")
        for _ in range(int(value or 1) if step == "w1" else 1):
            done[step] += 1
            rep = base + done[step] + (POISSON if step == "poisson" else 0)
            before = server.cpu_s()
            if step == "w1":
                told = reading(ask(server.port, options.model, w1(rep, options), options.processes))
                told |= {"workload": "w1", "arrivals": "all at once"}
            else:
                requests = poisson(float(value), rep, options)
                load = ask(server.port, options.model, requests, options.processes)
                told = reading(load, options.ramp, options.seconds)
                arrivals = f"poisson {value}/s for {options.seconds:g} s, ramp {options.ramp:g} s"
                told |= {"workload": f"poisson-{value}", "arrivals": arrivals}
            cpu = {name: round(seconds - before[name], 2) for name, seconds in server.cpu_s().items()}
            tell(step, rep=rep, **told, server_cpu_s=cpu)


def machine() -> str:
    """As bench/gpu.py says it; of a machine without a GPU its processor."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        name = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        name = "no GPU"
    return f"{name}, {platform.machine()} x {os.cpu_count()}"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=list(ENGINE_PROCESSES), required=True)
    parser.add_argument("--version", required=True, help="of the engine")
    parser.add_argument("--model", required=True, help="the name that the server gives it")
    parser.add_argument("--run", required=True, help="one id for everything measured on one machine in one go")
    parser.add_argument("--plan", required=True, help="w1[:REPETITIONS] and poisson:RATE, by commas")
    parser.add_argument("--kernel-cache", choices=["empty", "partly filled", "filled"], required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", type=Path, default=Path("server.log"), help="what the server writes")
    parser.add_argument("--engine-process", help="in its command line or title; default: by --engine")
    parser.add_argument("--start-s", type=float, default=240.0, help="patience with the start")
    parser.add_argument("--seconds", type=float, default=30.0, help="of Poisson arrivals")
    parser.add_argument("--ramp", type=float, default=5.0, help="of them, seconds that do not count")
    parser.add_argument("--processes", type=int, default=6, help="that ask")
    parser.add_argument("--first", type=int, default=256, help="so many requests of W1")
    parser.add_argument("--divide", type=int, default=1, help="W1's lengths")
    parser.add_argument("--vocabulary", type=int, default=workloads.TOKEN_MAX + 1, help="token ids stay below it")
    parser.add_argument("command", nargs="+", help="the server's, after --")
    options = parser.parse_args(given)
    steps = [part.partition(":")[0] for part in options.plan.split(",")]
    if unknown := [step for step in steps if step not in ("w1", "poisson")]:
        parser.error(f"--plan names {unknown[0]}; known are w1 and poisson:RATE")
    if "--port" not in options.command:
        parser.error("the server's command must hold --port PORT")
    return options


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    base = {
        "engine": options.engine,
        "version": options.version,
        "run": options.run,
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "command": shlex.join(options.command),
        "model": options.model,
    }

    def tell(step: str, **told: Any) -> None:
        with options.out.open("a") as file:
            file.write(json.dumps({**base, "step": step, **told}) + "\n")
        print(step, json.dumps(told), flush=True)

    server = Server(options.command, options.log, options.engine_process or ENGINE_PROCESSES[options.engine])
    try:
        measure(server, options, tell)
    finally:
        server.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
