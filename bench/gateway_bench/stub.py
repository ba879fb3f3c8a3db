"""Processes beside the one that is measured: an engine that only writes, and a forwarder that only copies.

Both on uvloop with raw protocols: the engine costs a fifth of what any proxy in Python does, so it is not the limit.

    python -m gateway_bench.stub engine STEP_S      prints its port, then writes one event a stream each STEP_S
    python -m gateway_bench.stub forward PORT [OWN]  prints its port, then copies bytes to and from PORT
"""

import asyncio
import json
import sys
import time
from typing import Any

import uvloop

CHUNK = (
    b'data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1760000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"%020d"},"finish_reason":null}]}\n\n'
)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
WHOLE = (
    b'{"id":"chatcmpl-0123456789abcdef","object":"chat.completion","created":1760000000,"model":"m","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"ok"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":1,"total_tokens":6}}'
)


class StubEngine(asyncio.Protocol):
    """Answers a completion at once, or streams `max_tokens` events: the first at once, then one a step."""

    def __init__(self, streams: dict["StubEngine", int]) -> None:
        self._streams = streams
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.pop(self, None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        lengths = [line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0]) if lengths else 0
        if not end or len(rest) < length:
            return
        self._buffer = rest[length:]
        if head.startswith(b"GET "):
            self._send(b"{}", 404)
            return
        body = json.loads(rest[:length])
        if body.get("stream"):
            self.transport.write(STREAM_HEAD)
            self._streams[self] = body["max_tokens"]
            self.step()
        else:
            self._send(WHOLE, 200)

    def step(self) -> None:
        """Write the next event, whose text is the moment: a proxy that writes events anew passes that on too."""
        event = CHUNK % time.monotonic_ns()
        left = self._streams[self] - 1
        self.transport.write(b"%x\r\n%b\r\n" % (len(event), event) + (b"" if left else LAST))
        if left:
            self._streams[self] = left
        else:
            del self._streams[self]

    def _send(self, body: bytes, status: int) -> None:
        head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        self.transport.write(head + body)


async def serve_engine(step_s: float) -> None:
    streams: dict[StubEngine, int] = {}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: StubEngine(streams), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    due = loop.time()
    while True:
        due = max(due + step_s, loop.time())
        await asyncio.sleep(due - loop.time())
        for stream in list(streams):
            stream.step()


class Forwarder(asyncio.Protocol):
    """One client's connection and its twin to the engine; looks at nothing."""

    def __init__(self, port: int) -> None:
        self._port = port

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._twin: Any = None
        self._early = b""
        self._opening = asyncio.ensure_future(self._open())

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._twin, _ = await loop.create_connection(lambda: Backward(self.transport), "127.0.0.1", self._port)
        except OSError:
            self.transport.abort()
        else:
            self._twin.write(self._early)

    def data_received(self, data: bytes) -> None:
        if self._twin is None:
            self._early += data
        else:
            self._twin.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._twin is not None:
            self._twin.close()


class Backward(asyncio.Protocol):
    """The way back of a forwarder."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        self._client.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.abort() if exc else self._client.close()


async def serve_forwarder(port: int, own: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Forwarder(port), "127.0.0.1", own, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    if sys.argv[1] == "engine":
        uvloop.run(serve_engine(float(sys.argv[2])))
    else:
        uvloop.run(serve_forwarder(int(sys.argv[2]), int(sys.argv[3]) if sys.argv[3:] else 0))
