"""What the gateway adds: CPU per request and per streamed token, and latency beside asking the engine directly.

    .venv/bin/python bench/gateway.py [--seconds 4] [--model models/quire-tiny]

Processes on this machine: a stub engine that writes one SSE event per stream and step, the gateway, and this client.
CPU is the gateway process's own (user + system). Delay per token is from the stub's write to the client's read. "floor"
is the CPU of a forwarder on the same event loop that only copies bytes from socket to socket: what no gateway in Python
can undercut. Written to bench/results/gateway.json.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from quire_api import blocks, wire
from quire_text.bundle import TokenizerBundle

RESULTS = Path(__file__).parent / "results" / "gateway.json"
TINY = Path(__file__).parents[1] / "models" / "quire-tiny"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1760000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}],"at":%020d}\n\n'
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = b'{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"ok"}}]}'
PROMPT = "What does the scheduler do when a request waits and the cache is full? "


class StubEngine(asyncio.Protocol):
    """Answers a completion at once, or streams `max_tokens` events, one a step for every stream."""

    streams: dict["StubEngine", int]
    model: tuple[bytes, bytes] | None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.buffer = b""

    def connection_lost(self, exc: Exception | None) -> None:
        self.streams.pop(self, None)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, end, rest = self.buffer.partition(b"\r\n\r\n")
        lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0]) if lengths else 0
        if not end or len(rest) < length:
            return
        self.buffer = rest[length:]
        if head.startswith(b"GET /internal/v1/model"):
            self.send(self.model[0] if self.model else b"{}", 200 if self.model else 404)
        elif head.startswith(b"GET /internal/v1/tokenizer") and self.model:
            self.send(self.model[1], 200)
        else:
            body = json.loads(rest[:length])
            if body.get("stream"):
                self.transport.write(STREAM_HEAD)
                self.streams[self] = body["max_tokens"]
            else:
                self.send(WHOLE, 200)

    def send(self, body: bytes, status: int) -> None:
        head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        self.transport.write(head + body)


class Forwarder(asyncio.Protocol):
    """One client's connection and its twin to the stub; looks at nothing."""

    stub_port: int

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.twin: Any = None
        self.early = b""
        self.opening = asyncio.ensure_future(self.open())

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self.twin, _ = await loop.create_connection(lambda: Backward(self.transport), "127.0.0.1", self.stub_port)
        self.twin.write(self.early)

    def data_received(self, data: bytes) -> None:
        if self.twin is None:
            self.early += data
        else:
            self.twin.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.twin is not None:
            self.twin.close()


class Backward(asyncio.Protocol):
    """The way back of a forwarder."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def data_received(self, data: bytes) -> None:
        self.client.write(data)


async def serve_forwarder(stub_port: int) -> None:
    """The forwarder's process: prints its port."""
    Forwarder.stub_port = stub_port
    server = await asyncio.get_running_loop().create_server(Forwarder, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def serve_stub(step_s: float, model: str) -> None:
    """The stub engine's process: prints its port, then one step every `step_s`."""
    StubEngine.streams = {}
    StubEngine.model = facts(Path(model)) if model else None
    loop = asyncio.get_running_loop()
    server = await loop.create_server(StubEngine, "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    due = loop.time()
    while True:
        due = max(due + step_s, loop.time())
        await asyncio.sleep(due - loop.time())
        for stream, left in list(StubEngine.streams.items()):
            event = CHUNK % time.monotonic_ns()
            stream.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            if left == 1:
                stream.transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
                del StubEngine.streams[stream]
            else:
                StubEngine.streams[stream] = left - 1


def facts(directory: Path) -> tuple[bytes, bytes]:
    """What /internal/v1/model and /internal/v1/tokenizer answer for the model in `directory`."""
    bundle = TokenizerBundle.from_directory(directory)
    info = wire.ModelInfo(
        served_names=["m"],
        model_revision="bench",
        block_size=blocks.DEFAULT_BLOCK_SIZE,
        block_format=blocks.FORMAT_VERSION,
        max_model_len=32768,
        tokenizer_digest=bundle.digest,
        kv_capacity_tokens=1 << 20,
        max_num_seqs=256,
        engine_epoch="1",
    )
    return msgspec.json.encode(info), bundle.pack()


def request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    return b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


async def one_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> float:
    """Milliseconds of one whole exchange on a kept connection."""
    began = time.perf_counter()
    writer.write(data)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    await reader.readexactly(int(length[15:]))
    return (time.perf_counter() - began) * 1e3


async def measure_requests(port: int, prompt: str, clients: int, seconds: float) -> list[float]:
    """Latencies in ms of requests that `clients` connections send back to back."""
    latencies: list[float] = []
    stop_at = time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = 0
        while time.perf_counter() < stop_at:
            turn += 1
            data = request({"model": "m", "prompt": f"{number} {turn} {prompt}", "max_tokens": 1})
            latencies.append(await one_request(reader, writer, data))
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return latencies


async def measure_streams(port: int, streams: int, tokens: int) -> list[float]:
    """Delays in ms from the stub's write to our read of every token of `streams` concurrent streams."""
    delays: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request({"model": "m", "prompt": "1", "stream": True, "max_tokens": tokens}))
        while True:
            line = await reader.readline()
            if line.startswith(b'data: {"id"'):
                delays.append((time.monotonic_ns() - int(line[-22:-2])) / 1e6)
            elif line.startswith(b"0\r\n") or not line:
                break
        writer.close()

    await asyncio.gather(*(client() for _ in range(streams)))
    return delays


def cpu_s(pid: int) -> tuple[float, float]:
    """Seconds that a process has used: all, and of them in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]) / TICKS_PER_S, int(fields[12]) / TICKS_PER_S
    return user + system, system


def memory_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50_ms": round(statistics.median(ordered), 3),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3),
    }


class Bench:
    """Stub engine and gateway as processes, for one `with`."""

    def __init__(self, step_s: float, model: str) -> None:
        self._command = [sys.executable, __file__, "--stub", str(step_s), "--model", model]

    def __enter__(self) -> "Bench":
        self._stub = subprocess.Popen(self._command, stdout=subprocess.PIPE)
        assert self._stub.stdout is not None
        self.stub_port = int(self._stub.stdout.readline())
        forward = [sys.executable, __file__, "--forward", str(self.stub_port)]
        self._forwarder = subprocess.Popen(forward, stdout=subprocess.PIPE)
        assert self._forwarder.stdout is not None
        self.forwarder_port = int(self._forwarder.stdout.readline())
        self.forwarder_pid = self._forwarder.pid
        self._folder = tempfile.TemporaryDirectory()
        table = Path(self._folder.name) / "table.json"
        replica = wire.Replica(id="stub", url=f"http://127.0.0.1:{self.stub_port}")
        deployment = wire.Deployment(name="bench", namespace="default", served_names=["m"], replicas=[replica])
        table.write_bytes(msgspec.json.encode(wire.RoutingTable(deployments=[deployment])))
        log = str(Path(self._folder.name) / "access.jsonl")
        flags = ["--port", "0", "--routing-table", str(table), "--access-log", log]
        self._gateway = subprocess.Popen(
            [sys.executable, "-m", "quire_gateway", *flags], stderr=subprocess.PIPE, text=True
        )
        assert self._gateway.stderr is not None
        self.port = int(self._gateway.stderr.readline().rpartition(":")[2])
        self._gateway.stderr.readline()
        self.pid = self._gateway.pid
        return self

    def __exit__(self, *_: object) -> None:
        for child in (self._gateway, self._forwarder, self._stub):
            child.kill()
            child.wait()
        self._folder.cleanup()


async def run_requests(bench: Bench, name: str, prompt: str, clients: int, seconds: float) -> dict[str, Any]:
    direct = await measure_requests(bench.stub_port, prompt, clients, seconds / 2)
    before = cpu_s(bench.pid)
    through = await measure_requests(bench.port, prompt, clients, seconds)
    return row(name, before, cpu_s(bench.pid), direct, through)


async def run_streams(bench: Bench, streams: int, step_s: float, seconds: float) -> dict[str, Any]:
    tokens = int(seconds / step_s)
    direct = await measure_streams(bench.stub_port, streams, max(1, tokens // 2))
    before = cpu_s(bench.pid)
    through = await measure_streams(bench.port, streams, tokens)
    after = cpu_s(bench.pid)
    floor_before = cpu_s(bench.forwarder_pid)[0]
    forwarded = await measure_streams(bench.forwarder_port, streams, tokens)
    floor = (cpu_s(bench.forwarder_pid)[0] - floor_before) / len(forwarded) * 1e6
    name = f"{streams} streams, a token each {step_s * 1e3:g} ms"
    return row(name, before, after, direct, through) | {"floor_us": round(floor, 1)}


def row(
    name: str, before: tuple[float, float], after: tuple[float, float], direct: list[float], through: list[float]
) -> dict[str, Any]:
    used, system = after[0] - before[0], after[1] - before[1]
    return {
        "load": name,
        "count": len(through),
        "cpu_us": round(used / len(through) * 1e6, 1),
        "kernel_us": round(system / len(through) * 1e6, 1),
        "per_cpu_second": round(len(through) / used),
        "direct": spread(direct),
        "gateway": spread(through),
    }


async def main(seconds: float, model: str) -> None:
    rows = []
    for streams, step_s in ((1, 0.005), (8, 0.01), (64, 0.01), (256, 0.04)):
        with Bench(step_s, "") as bench:
            rows.append(await run_streams(bench, streams, step_s, seconds))
            memory = memory_mb(bench.pid)
    with Bench(0.01, "") as bench:
        for clients in (1, 16):
            name = f"{clients} clients, small bodies, no tokenizer"
            rows.append(await run_requests(bench, name, "hello", clients, seconds))
    if model:
        with Bench(0.01, model) as bench:
            rows.append(await run_requests(bench, "16 clients, 20 tokens hashed", PROMPT, 16, seconds))
            rows.append(await run_requests(bench, "4 clients, 2k tokens hashed", PROMPT * 120, 4, seconds))
    show(rows)
    load = os.getloadavg()[0]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}"
    RESULTS.parent.mkdir(exist_ok=True)
    result = {
        "command": "bench/gateway.py",
        "machine": machine,
        "uvloop": uvloop.__version__,
        "memory_mb": round(memory, 1),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{machine}; gateway {memory:.0f} MB with 256 streams; written to {RESULTS.relative_to(Path.cwd())}")


def show(rows: list[dict[str, Any]]) -> None:
    heads = "load", "CPU us", "kernel", "floor", "per CPU-s", "direct p50/p99 ms", "gateway p50/p99 ms"
    line = "{:40} {:>7} {:>7} {:>7} {:>10} {:>19} {:>19}"
    print(line.format(*heads))
    for each in rows:
        delays = [f"{each[way]['p50_ms']:.2f} / {each[way]['p99_ms']:.2f}" for way in ("direct", "gateway")]
        costs = each["cpu_us"], each["kernel_us"], each.get("floor_us", ""), each["per_cpu_second"]
        print(line.format(each["load"], *costs, *delays))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--model", default=str(TINY) if (TINY / "tokenizer.json").exists() else "")
    parser.add_argument("--stub", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--forward", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stub:
        uvloop.run(serve_stub(given.stub, given.model))
    elif given.forward:
        uvloop.run(serve_forwarder(given.forward))
    else:
        uvloop.run(main(given.seconds, given.model))
