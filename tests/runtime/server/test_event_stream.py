"""Events on a real connection, while the engine's part is played token by token."""

import asyncio
import contextlib
import gc
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send

from quire_runtime.engine.errors import EngineDied
from quire_runtime.engine.messages import EngineReady, EngineStats
from quire_runtime.engine.request import EngineRequest
from quire_runtime.engine.stream import ChoiceDelta, Stream
from quire_runtime.scheduler.request import FinishReason
from quire_runtime.server.app import create_app
from quire_runtime.server.config import ServerConfig
from quire_runtime.server.generation import Generation
from quire_runtime.server.protocol import Http
from quire_runtime.server.token_writer import TokenWriter
from quire_text.tokenizer import Tokenizer

BUFFER = 4096
DEADLINE_S = 30
ASK = {"model": "m", "prompt": "x", "stream": True, "max_tokens": 10**5}


@dataclass
class Engine:
    """Takes requests; their deltas come from the test."""

    info: EngineReady | None = field(default_factory=lambda: EngineReady("rev", 16, 100, 10**6, 8, "epoch", {}))
    stats: EngineStats = field(default_factory=EngineStats)
    is_alive: bool = True
    heartbeat_age_s: float = 0.0
    streams: list[Stream] = field(default_factory=list)
    num_closed: int = 0

    def open(self, request: EngineRequest) -> Stream:
        self.streams.append(Stream(request.params.n, self._count))
        return self.streams[-1]

    def _count(self, _stream: Stream) -> None:
        self.num_closed += 1


@dataclass
class Door:
    """passed: bodies of messages that a middleware around the application sees, the head's empty one first."""

    engine: Engine
    port: int
    passed: list[bytes]

    async def ask(self, **fields: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A streamed request over a connection that holds little; it is in the engine's hands on return."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=BUFFER)
        body = json.dumps({**ASK, **fields}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        known = len(self.engine.streams)
        await until(lambda: len(self.engine.streams) > known)
        return reader, writer


@pytest.fixture
def tokenizer(model_directory) -> Tokenizer:
    return Tokenizer.from_directory(model_directory)


@pytest.fixture
async def door(tokenizer) -> AsyncIterator[Door]:
    engine = Engine()
    app = create_app(engine, tokenizer, ServerConfig.of(served_model_name=["m"]))
    passed: list[bytes] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def watch(message: Message) -> None:
            passed.append(message.get("body", b""))
            await send(message)

        await app(scope, receive, watch)

    config = uvicorn.Config(
        watched, loop="none", http=Http, ws="none", lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        yield Door(engine, listener.getsockname()[1], passed)
        server.should_exit = True
        await serving


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def bring(stream: Stream, *deltas: ChoiceDelta) -> None:
    """One step of the engine."""
    if sum(stream.add(delta) for delta in deltas):
        stream.tell()


def events(answer: bytes) -> list[str]:
    """The data of the events in a chunked answer."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return [line[6:].decode() for line in body.splitlines() if line.startswith(b"data: ")]


def living() -> list[object]:
    return [each for each in gc.get_objects() if type(each) in (Generation, TokenWriter)]


def text_of(told: list[str]) -> str:
    return "".join(json.loads(event)["choices"][0]["text"] for event in told)


async def test_each_step_is_on_the_wire_before_the_next_one(door, tokenizer):
    ids = tokenizer.encode("one two three four", add_special_tokens=False)
    reader, writer = await door.ask()
    [stream] = door.engine.streams
    async with asyncio.timeout(DEADLINE_S):
        for token in ids:
            bring(stream, ChoiceDelta(0, [token]))
            await reader.readuntil(b"\n\n")
        bring(stream, ChoiceDelta(0, [], FinishReason.LENGTH))
        assert b'"finish_reason":"length"' in await reader.readuntil(b"\n\n")
        assert b"[DONE]" in await reader.readuntil(b"\n\n")
    assert door.engine.num_closed == 1
    writer.close()


async def test_the_first_event_is_seen_by_middlewares_also_after_half_a_character(door, tokenizer):
    head, *tail = tokenizer.encode("é", add_special_tokens=False)
    assert tail, "é is to be of several tokens"
    reader, _ = await door.ask()
    [stream] = door.engine.streams
    async with asyncio.timeout(DEADLINE_S):
        bring(stream, ChoiceDelta(0, [head]))
        await until(lambda: bool(door.passed))
        bring(stream, ChoiceDelta(0, tail))
        await reader.readuntil(b"\n\n")
        assert "é" in b"".join(door.passed).decode()
        bring(stream, ChoiceDelta(0, [], FinishReason.LENGTH))
        await reader.readuntil(b"[DONE]")


async def test_a_slow_client_gets_every_token_in_fewer_events(door, tokenizer):
    ids = tokenizer.encode("and so on ", add_special_tokens=False) * 2000
    reader, writer = await door.ask()
    [stream] = door.engine.streams
    for token in ids:
        bring(stream, ChoiceDelta(0, [token]))
        await asyncio.sleep(0)
    bring(stream, ChoiceDelta(0, [], FinishReason.LENGTH))
    async with asyncio.timeout(DEADLINE_S):
        *told, done = events(await reader.read(-1))
    assert done == "[DONE]"
    assert text_of(told) == tokenizer.decode(ids)
    assert 10 < len(told) < len(ids) / 2
    writer.close()


async def test_a_client_that_hangs_up_ends_its_request_alone(door, tokenizer):
    [token] = tokenizer.encode("a", add_special_tokens=False)
    (_, leaver), (reader, writer) = await door.ask(), await door.ask()
    left, kept = door.engine.streams
    for stream in (left, kept):
        bring(stream, ChoiceDelta(0, [token]))
    await reader.readuntil(b"\n\n")
    leaver.transport.abort()
    await until(lambda: door.engine.num_closed == 1)
    bring(left, ChoiceDelta(0, [token]))
    bring(kept, ChoiceDelta(0, [token], FinishReason.LENGTH))
    assert b"[DONE]" in await asyncio.wait_for(reader.read(-1), DEADLINE_S)
    assert door.engine.num_closed == 2
    writer.close()


async def test_what_came_before_a_death_is_told_before_it(door, tokenizer):
    first, second = tokenizer.encode("ab", add_special_tokens=False)
    reader, writer = await door.ask()
    [stream] = door.engine.streams
    bring(stream, ChoiceDelta(0, [first]))
    await asyncio.sleep(0.1)
    stream.add(ChoiceDelta(0, [second]))
    stream.fail(EngineDied("gone"))
    *told, error, done = events(await asyncio.wait_for(reader.read(-1), DEADLINE_S))
    assert (text_of(told), done) == ("ab", "[DONE]")
    assert json.loads(error)["error"]["message"] == "gone"
    writer.close()


async def test_parts_of_a_character_wait_for_each_other_amid_a_stream(door, tokenizer):
    ids = tokenizer.encode("aéb", add_special_tokens=False)
    assert len(ids) > 3, "é is to be of several tokens"
    reader, writer = await door.ask()
    [stream] = door.engine.streams
    for token in ids:
        bring(stream, ChoiceDelta(0, [token]))
        await asyncio.sleep(0.01)
    bring(stream, ChoiceDelta(0, [], FinishReason.LENGTH))
    *told, _ = events(await asyncio.wait_for(reader.read(-1), DEADLINE_S))
    assert [json.loads(event)["choices"][0]["text"] for event in told] == ["a", "é", "b", ""]
    writer.close()


async def test_each_token_after_the_first_counts_once_in_the_time_between_tokens(door, tokenizer):
    [token] = tokenizer.encode("a", add_special_tokens=False)
    reader, writer = await door.ask(stream_options={"include_usage": True})
    [stream] = door.engine.streams
    for _ in range(5):
        bring(stream, ChoiceDelta(0, [token]))
        await reader.readuntil(b"\n\n")
    bring(stream, ChoiceDelta(0, [token], FinishReason.LENGTH))
    assert b'"completion_tokens":6' in await asyncio.wait_for(reader.read(-1), DEADLINE_S)
    writer.close()
    async with httpx.AsyncClient() as http:
        told = (await http.get(f"http://127.0.0.1:{door.port}/metrics")).text
    assert 'quire:inter_token_latency_seconds_count{engine="0",model_name="m"} 5.0' in told
    assert 'quire:generation_tokens_total{engine="0",model_name="m"} 6.0' in told


@pytest.mark.parametrize(
    "fault", [ChoiceDelta(7, [5]), ChoiceDelta(0, None)], ids=["a choice that nobody asked for", "no list of tokens"]
)
async def test_a_fault_of_ours_in_a_stream_breaks_its_connection_and_no_other(door, tokenizer, caplog, fault):
    caplog.set_level(logging.CRITICAL, logger="uvicorn.error")
    [token] = tokenizer.encode("a", add_special_tokens=False)
    (broken, _), (reader, writer) = await door.ask(), await door.ask()
    ours, theirs = door.engine.streams
    for stream in (ours, theirs):
        bring(stream, ChoiceDelta(0, [token]))
    await asyncio.gather(broken.readuntil(b"\n\n"), reader.readuntil(b"\n\n"))
    bring(ours, fault)
    bring(theirs, ChoiceDelta(0, [token], FinishReason.LENGTH))
    assert b"[DONE]" not in await asyncio.wait_for(broken.read(-1), DEADLINE_S)
    assert b"[DONE]" in await asyncio.wait_for(reader.read(-1), DEADLINE_S)
    await until(lambda: door.engine.num_closed == 2)
    writer.close()


async def test_a_prompt_that_has_ended_is_closed_before_the_others(door, tokenizer):
    [token] = tokenizer.encode("a", add_special_tokens=False)
    reader, writer = await door.ask(prompt=["x", "y"], stop="a")
    await until(lambda: len(door.engine.streams) == 2)
    first, second = door.engine.streams
    bring(first, ChoiceDelta(0, [token]))
    await until(lambda: door.engine.num_closed == 1)
    bring(second, ChoiceDelta(0, [token]))
    *told, done = events(await asyncio.wait_for(reader.read(-1), DEADLINE_S))
    assert done == "[DONE]"
    assert {json.loads(event)["choices"][0]["index"] for event in told} == {0, 1}
    assert door.engine.num_closed == 2
    writer.close()


@pytest.mark.parametrize("steps", [1, 3])
async def test_an_ended_stream_leaves_nothing_to_the_collector(door, tokenizer, steps):
    [token] = tokenizer.encode("a", add_special_tokens=False)
    others = living()
    gc.disable()
    try:
        reader, writer = await door.ask()
        stream = door.engine.streams.pop()
        for _ in range(steps - 1):
            bring(stream, ChoiceDelta(0, [token]))
            await reader.readuntil(b"\n\n")
        bring(stream, ChoiceDelta(0, [token], FinishReason.LENGTH))
        assert b"[DONE]" in await asyncio.wait_for(reader.read(-1), DEADLINE_S)
        del stream
        writer.close()
        await until(lambda: len(living()) == len(others))
    finally:
        gc.enable()
