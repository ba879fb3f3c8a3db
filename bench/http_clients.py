"""Streamed completions asked of a server from several processes, and when each event of each came."""

import asyncio
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools
import uvloop

START_S = 60.0
"""Patience with the processes that ask."""
LEAD_S = 1.0
"""From the last client's being ready to the first request."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Token ids in, so many tokens out, due so long after the beginning."""

    prompt: list[int]
    tokens: int
    due_s: float = 0.0


@dataclass(slots=True)
class Answered:
    """Seconds after the request was due, so that a server that stalls cannot hide it; `events_s`: with text."""

    due_s: float
    events_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """wall_s: from the beginning to the last byte; busiest: CPU of the busiest process over that."""

    answers: list[Answered]
    wall_s: float
    busiest: float


class _Stream(asyncio.Protocol):
    """One request on a connection of its own. Events are taken from the body as it comes."""

    def __init__(self, body: bytes, asked: Asked, due: float) -> None:
        self.is_done = asyncio.get_running_loop().create_future()
        self.answer = Answered(asked.due_s)
        self._body, self._asked, self._due = body, asked, due
        self._parser = httptools.HttpResponseParser(self)
        self._tail = b""
        self._finish: str | None = None
        self._is_whole = False
        self._now = due

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        head = (
            b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\nconnection: close\r\n"
        )
        transport.write(head + b"content-length: %d\r\n\r\n" % len(self._body) + self._body)

    def data_received(self, data: bytes) -> None:
        self._now = time.monotonic()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, ValueError, LookupError) as error:
            self._end(f"an answer that is not understood: {error!r:.200}")

    def on_body(self, body: bytes) -> None:
        if (status := self._parser.get_status_code()) != 200:
            self._end(f"HTTP {status}: {body[:200].decode(errors='replace')}")
            return
        *events, self._tail = (self._tail + body).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                self._on_event(event[6:])

    def _on_event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._is_whole = True
            return
        event = json.loads(data)
        if usage := event.get("usage"):
            self.answer.prompt_tokens, self.answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        for choice in event["choices"]:
            self._finish = choice.get("finish_reason") or self._finish
            if choice["text"]:
                self.answer.events_s.append(self._now - self._due)

    def on_message_complete(self) -> None:
        asked, answer = (len(self._asked.prompt), self._asked.tokens), self.answer
        if not self._is_whole:
            self._end("the stream ended without [DONE]")
        elif (answer.prompt_tokens, answer.output_tokens) != asked or self._finish != "length":
            self._end(f"{answer.prompt_tokens} and {answer.output_tokens} tokens, {self._finish}; asked for {asked}")
        elif not answer.events_s:
            self._end("no event with text")
        else:
            self._end("")

    def connection_lost(self, exc: Exception | None) -> None:
        self._now = time.monotonic()
        self._end(f"the server hung up: {exc}")

    def _end(self, problem: str) -> None:
        """The first end counts."""
        if not self.is_done.done():
            self.answer.problem, self.answer.end_s = problem, self._now - self._due
            self.is_done.set_result(None)


def ask(port: int, model: str, requests: Sequence[Asked], processes: int) -> Load:
    """Send all when they are due, to 127.0.0.1."""
    context = multiprocessing.get_context("spawn")
    parts = [requests[index::processes] for index in range(min(processes, len(requests)))]
    gate, begins = context.Barrier(len(parts) + 1), context.Value("d", 0.0)
    with context.Pool(len(parts), _prepare, (gate, begins)) as pool:
        results = pool.starmap_async(_ask_part, [(port, model, part) for part in parts], chunksize=1)
        gate.wait(START_S)
        begins.value = time.monotonic() + LEAD_S
        gate.wait(START_S)
        found = results.get()
    answers = [answer for part, _ in found for answer in part]
    wall_s = max(answer.due_s + answer.end_s for answer in answers)
    return Load(answers, wall_s, max(cpu_s for _, cpu_s in found) / wall_s)


def _prepare(gate: Any, begins: Any) -> None:
    global _gate, _begins
    _gate, _begins = gate, begins


def _ask_part(port: int, model: str, requests: Sequence[Asked]) -> tuple[list[Answered], float]:
    """The answers, and CPU seconds of this process from the beginning on."""
    bodies = [
        json.dumps(
            {
                "model": model,
                "prompt": asked.prompt,
                "max_tokens": asked.tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        for asked in requests
    ]
    _gate.wait(START_S)
    _gate.wait(START_S)
    begin = float(_begins.value)

    async def one(asked: Asked, body: bytes) -> Answered:
        loop, due = asyncio.get_running_loop(), begin + asked.due_s
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        try:
            _, stream = await loop.create_connection(lambda: _Stream(body, asked, due), "127.0.0.1", port)
        except OSError as error:
            return Answered(asked.due_s, end_s=time.monotonic() - due, problem=f"no connection: {error}")
        await stream.is_done
        return stream.answer

    async def everyone() -> list[Answered]:
        return await asyncio.gather(*(one(asked, body) for asked, body in zip(requests, bodies, strict=True)))

    cpu = time.process_time()
    return uvloop.run(everyone()), time.process_time() - cpu
