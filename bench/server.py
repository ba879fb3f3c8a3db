"""CPU of the server per streamed token: `quire serve` over an engine that only counts, to clients that only read.

    python bench/server.py [--model models/quire-tiny] [--streams 32 256] [--step-ms 40] [--rounds 3] [--output FILE]

The server is the real one and talks to its engine's process over the real sockets; in that process nothing is computed,
every step of --step-ms gives each request a token. Prompts and outputs are a quarter as long as those of W1
(bench/workloads.py), token ids in. All clients are one process; neither it nor the engine's is counted. A server that
sleeps is woken once a step: at few streams that is most of its work.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from workloads import w1

ROOT = Path(__file__).resolve().parent.parent
SERVER, ENGINE = "--as-server", "--as-engine"
MAX_MODEL_LEN = 4096
DIVISOR = 4
TOKENS = (400, 1500)
"""Of quire-tiny's vocabulary those that are whole characters, so that each token makes an event."""
START_S = 60.0


def run_engine(step_s: float, descriptor: int) -> None:
    """The engine's process: speaks as quire_runtime.engine.process does, at a pace of its own."""
    from quire_runtime.engine.messages import AddRequest, EngineReady, EngineStats, Step
    from quire_runtime.engine.process import Carrier, follow_parent
    from quire_runtime.scheduler.request import FinishReason

    follow_parent().get()
    carrier = Carrier(descriptor)
    carrier.post(EngineReady("bench", 16, 1 << 20, MAX_MODEL_LEN, 1024, "bench", {}))
    rng = np.random.default_rng(0)
    left: dict[int, int] = {}
    due, sequence = time.monotonic(), 0
    while True:
        new = set()
        while not left or not carrier.inbox.empty():
            message = carrier.inbox.get()
            if isinstance(message, AddRequest):
                left[message.handle] = message.params.max_tokens or 1
                new.add(message.handle)
        due = max(due + step_s, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))
        handles = list(left)
        left = {handle: count - 1 for handle, count in left.items()}
        ends = [FinishReason.NONE if left[handle] else FinishReason.LENGTH for handle in handles]
        sequence += 1
        carrier.post(
            Step(
                sequence=sequence,
                handles=np.array(handles, "<i8").tobytes(),
                choices=np.zeros(len(handles), "<i4").tobytes(),
                tokens=rng.integers(*TOKENS, len(handles), "<i4").tobytes(),
                finish=np.array(ends, "u1").tobytes(),
                cached=np.array([0 if handle in new else -1 for handle in handles], "<i4").tobytes(),
                logprobs=[],
                prompt_logprobs=[],
                stats=EngineStats(num_running=len(handles)),
            )
        )
        left = {handle: count for handle, count in left.items() if count}


def run_server(model: str, step_ms: str, port_file: str) -> None:
    """The server's process, whose engine is run_engine."""
    from quire_runtime.config import EngineConfig
    from quire_runtime.engine.child import EngineChild
    from quire_runtime.server.config import ServerConfig
    from quire_runtime.server.run import serve
    from quire_runtime.server.start import listen

    listener = listen("127.0.0.1", 0)
    Path(port_file).write_text(str(listener.getsockname()[1]))
    child = EngineChild(program=[__file__, ENGINE, step_ms])
    serve(EngineConfig.of(model=model), ServerConfig.of(served_model_name=["m"]), listener, child)


class Reader(asyncio.Protocol):
    """One streamed request."""

    def __init__(self, body: bytes) -> None:
        self.events = 0
        self.is_done = asyncio.get_running_loop().create_future()
        self._body = body
        self._tail = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        head = b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n"
        transport.write(head + b"content-length: %d\r\n\r\n" % len(self._body) + self._body)

    def data_received(self, data: bytes) -> None:
        self.events += data.count(b"data: {")
        if not self._tail and not data.startswith(b"HTTP/1.1 200"):
            self.is_done.set_exception(ConnectionError(data.decode()))
        self._tail = (self._tail + data)[-64:]
        if b"data: [DONE]" in self._tail and not self.is_done.done():
            self.is_done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_done.done():
            self.is_done.set_exception(exc or ConnectionError("the server hung up"))


def read_all(port: int, requests: list[tuple[list[int], int]]) -> int:
    """Ask all at once and read to the end; the events that came."""
    import uvloop

    async def ask() -> int:
        loop = asyncio.get_running_loop()
        readers = []
        for prompt, length in requests:
            asked = {"model": "m", "prompt": prompt, "max_tokens": length, "temperature": 0, "ignore_eos": True}
            body = json.dumps({**asked, "stream": True}).encode()
            _, reader = await loop.create_connection(lambda body=body: Reader(body), "127.0.0.1", port)  # type: ignore[misc]
            readers.append(reader)
        await asyncio.gather(*(reader.is_done for reader in readers))
        return sum(reader.events for reader in readers)

    return uvloop.run(ask())


@dataclass(frozen=True, slots=True)
class Load:
    streams: int
    tokens: int
    requests: list[tuple[list[int], int]]


def load(streams: int, rep: int) -> Load:
    requests = [
        ([token % TOKENS[1] for token in prompt[: len(prompt) // DIVISOR]], length // DIVISOR)
        for prompt, length in w1(rep)[:streams]
    ]
    return Load(streams, sum(length for _, length in requests), requests)


def measure(port: int, server: psutil.Process, work: Load) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(read_all, (port, work.requests[:1]))
        before, began = server.cpu_times(), time.monotonic()
        switches = server.num_ctx_switches().voluntary
        events = pool.apply(read_all, (port, work.requests))
        wall_s, after = time.monotonic() - began, server.cpu_times()
        switches = server.num_ctx_switches().voluntary - switches
    user, system = after.user - before.user, after.system - before.system
    return {
        "streams": work.streams,
        "tokens": work.tokens,
        "tokens_per_event": round(work.tokens / events, 3),
        "wall_s": round(wall_s, 2),
        "us_per_token": round(1e6 * (user + system) / work.tokens, 2),
        "of_it_system": round(1e6 * system / work.tokens, 2),
        "sleeps": switches,
    }


def wait_until_ready(port_file: Path, process: "subprocess.Popen[bytes]", log: Path) -> int:
    import httpx

    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if port_file.exists() and (port := port_file.read_text()):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=START_S).status_code == 200:
                    return int(port)
            except httpx.HTTPError:
                pass
        time.sleep(0.1)
    words = log.read_text().strip()
    raise SystemExit(f"The server did not become ready. Its last words:\n{words[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "quire-tiny", help="its tokenizer is used")
    parser.add_argument("--streams", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--step-ms", type=float, default=40.0, help="long enough for all events of one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if min(*options.streams, options.rounds) < 1:
        parser.error("--streams and --rounds are at least 1")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder) / "port"
        command = [sys.executable, __file__, SERVER, str(options.model), str(options.step_ms), str(port_file)]
        log = Path(folder) / "log"
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            port = wait_until_ready(port_file, process, log)
            for rep in range(options.rounds):
                for streams in options.streams:
                    row = measure(port, psutil.Process(process.pid), load(streams, rep))
                    print(json.dumps(row), flush=True)
                    rows.append(row)
        finally:
            process.terminate()
            process.wait()
    medians = {
        str(streams): statistics.median(row["us_per_token"] for row in rows if row["streams"] == streams)
        for streams in options.streams
    }
    print("CPU of the server, us a token:", medians)
    if options.output:
        result = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": " ".join(["bench/server.py", *sys.argv[1:]]),
            "step_ms": options.step_ms,
            "us_per_token": medians,
            "rounds": rows,
            "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        }
        options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case [mode, step_ms, descriptor] if mode == ENGINE:
            run_engine(float(step_ms) / 1e3, int(descriptor))
        case [mode, model, step_ms, port_file] if mode == SERVER:
            run_server(model, step_ms, port_file)
        case _:
            main()
