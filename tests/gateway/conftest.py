"""Stub engines that speak the engines' HTTP on real sockets, with knobs for everything that can go wrong."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
import uvloop
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from quire_api import blocks, kv_events, replay, warming, wire
from quire_gateway.config import GatewayConfig
from quire_gateway.gateway import Gateway
from quire_text.bundle import TokenizerBundle

BLOCK_SIZE = 4
WORDS = [f"w{number}" for number in range(200)]
TEMPLATE = "{% for m in messages %}<s> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
DEADLINE_S = 60.0


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


def bundle() -> TokenizerBundle:
    """One token per word."""
    vocab = {word: rank for rank, word in enumerate(["<unk>", "<s>", "<a>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    config = {"unk_token": "<unk>", "bos_token": "<s>"}
    return TokenizerBundle(
        {
            "tokenizer.json": backend.to_str().encode(),
            "tokenizer_config.json": json.dumps(config).encode(),
            "chat_template.jinja": TEMPLATE.encode(),
        }
    )


@dataclass
class Seen:
    """One request as an engine got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class StubEngine:
    """Streams `tokens` words a request; each knob may be changed at any time."""

    bundle: TokenizerBundle
    served_names: list[str] = field(default_factory=lambda: ["m"])
    tokens: int = 5
    token_delay_s: float = 0.0
    first_delay_s: float = 0.0
    gate: asyncio.Event | None = None
    """What answers wait for, where one is set."""
    status: int = 200
    dies_before_first_byte: bool = False
    dies_after_tokens: int | None = None
    dies_after_partial_event: bool = False
    replays: bool = False
    """It writes comment lines and goes on where others broke off."""
    ends_after_tokens: int | None = None
    fails_after_tokens: int | None = None
    """It says that it failed, as an engine does whose process has died under its server."""
    stalls_after_tokens: int | None = None
    beats: bool = False
    """It has an event stream with heartbeats."""
    is_frozen: bool = False
    """As after SIGSTOP: connections stand, nothing is said."""
    garbage: bytes = b""
    closes_idle: bool = False
    payload: bytes = b""
    internal_key: str = ""
    kv_capacity_tokens: int = 4096
    epoch: str = "1"
    revision: str = "rev"
    adapter: str = ""
    block_format: int = blocks.FORMAT_VERSION
    tells_model: bool = True
    raw_answer: bytes = b""
    hot: warming.HotPrefixes | None = None
    """What it tells of its cache; None: it is of a version that does not."""
    hot_delay_s: float = 0.0
    dies_when_asked: bool = False
    """For its hot prefixes."""
    warm_delay_s: float = 0.0
    warm_gate: asyncio.Event | None = None
    """What its warming waits for, where one is set."""
    dies_when_warmed: bool = False
    warmed: warming.Warmed = field(default_factory=lambda: warming.Warmed(prefixes=1, tokens=8))
    asked_hot: list[Seen] = field(default_factory=list)
    warmings: list[Seen] = field(default_factory=list)
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    bundle_fetches: int = 0
    hung_up: int = 0
    connections: int = 0
    written: int = 0
    streaming: int = 0

    async def start(self) -> None:
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def kill(self) -> None:
        """As kill -9 does: every connection resets, nobody listens."""
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        is_new = True
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                request_line, *lines = head.decode("latin-1").split("\r\n")[:-2]
                method, path, _ = request_line.split(" ")
                self.connections += is_new and path != "/internal/v1/kv-events"
                is_new = False
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                answering = asyncio.ensure_future(self._answer(Seen(method, path, headers, body), writer))
                gone = asyncio.ensure_future(reader.read(1))
                done, _ = await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
                if answering not in done:
                    self.hung_up += 1
                    answering.cancel()
                    return
                keeps = answering.result()
                if not keeps or self.closes_idle:
                    gone.cancel()
                    return
                first = await gone
                if not first:
                    return
                reader._buffer[:0] = first
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort() if self.dies_before_first_byte else writer.close()

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        await self._thaw()
        if seen.path == "/internal/v1/model":
            if not self.tells_model:
                return self._send(writer, 404, b"{}")
            if self.internal_key and seen.headers.get("x-quire-internal-key") != self.internal_key:
                return self._send(writer, 403, b"{}")
            return self._send(writer, 200, msgspec.json.encode(self.info()))
        if seen.path == "/internal/v1/kv-events":
            if self.beats:
                return await self._beat(writer)
            return self._send(writer, 404, b"{}")
        if seen.path == "/internal/v1/tokenizer":
            self.bundle_fetches += 1
            return self._send(writer, 200, self.bundle.pack())
        if seen.path.startswith((warming.HOT_PREFIXES_PATH, warming.WARM_PATH)):
            return await self._warm(seen, writer)
        if seen.json == {"model": seen.json.get("model"), "prompt": "1", "max_tokens": 1, "temperature": 0}:
            return self._send(writer, 503 if self.status == 503 else 200, b"{}")
        self.seen.append(seen)
        await asyncio.sleep(self.first_delay_s)
        if self.gate is not None:
            await self.gate.wait()
        await self._thaw()
        if self.raw_answer:
            writer.write(self.raw_answer)
            return False
        if self.dies_before_first_byte:
            writer.transport.abort()
            return False
        if self.garbage:
            writer.write(self.garbage)
            return False
        if self.status != 200:
            return self._send(writer, self.status, b'{"error": {"message": "stub says no"}}')
        if seen.json.get("stream"):
            self.streaming += 1
            try:
                return await self._stream(seen, writer)
            finally:
                self.streaming -= 1
        text = " ".join(WORDS[: self.tokens])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, "text": text}
        whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return self._send(writer, 200, self.payload or json.dumps(whole).encode())

    async def _stream(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        given = seen.headers.get(replay.HEADER_REPLAY) if self.replays else None
        terms = {"created": 1} if given is None else json.loads(given)
        so_far = seen.json[replay.RESUME_FIELD] if terms.get("resumes") else {}
        begun = so_far.get("choices", [{}])[0].get("output_token_ids", [])
        assert begun == list(range(len(begun)))
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\nx-engine: stub\r\nconnection: keep-alive\r\n"
            + (b"" if given is None else b"%b: 1\r\n" % replay.HEADER_REPLAY.encode())
            + b"\r\n"
        )
        for number in range(len(begun), self.tokens):
            if self.dies_after_tokens == number:
                if self.dies_after_partial_event:
                    self._chunk(writer, b'data: {"choices": [{"ind')
                await writer.drain()
                await asyncio.sleep(0.05)
                writer.transport.abort()
                return False
            while self.stalls_after_tokens == number:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await self._thaw()
            if self.ends_after_tokens == number:
                writer.write(b"0\r\n\r\n")
                return True
            if self.fails_after_tokens == number:
                self._chunk(writer, replay.failure_comment("engine_dead") + b'data: {"error": {"message": "x"}}\n\n')
                self._chunk(writer, b"data: [DONE]\n\n")
                writer.write(b"0\r\n\r\n")
                return True
            comment = b"" if given is None else replay.token_comment(number + 1, 0, [number])
            delta = {"index": 0, "delta": {"content": WORDS[number % 200] + " "}, "finish_reason": None}
            created = terms["created"]
            event = {"id": "x", "object": "chat.completion.chunk", "created": created, "model": "m", "choices": [delta]}
            self._chunk(writer, comment + b"data: " + (self.payload or json.dumps(event).encode()) + b"\n\n")
            self.written = number + 1
            await writer.drain()
            if self.token_delay_s:
                await asyncio.sleep(self.token_delay_s)
        self._chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        return True

    async def _warm(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        is_asked = seen.path.startswith(warming.HOT_PREFIXES_PATH)
        (self.asked_hot if is_asked else self.warmings).append(seen)
        await asyncio.sleep(self.hot_delay_s if is_asked else self.warm_delay_s)
        if not is_asked and self.warm_gate is not None:
            await self.warm_gate.wait()
        if self.dies_when_asked if is_asked else self.dies_when_warmed:
            writer.transport.abort()
            return False
        if self.hot is None:
            return self._send(writer, 404, b"{}")
        if seen.headers.get("x-quire-internal-key") != self.internal_key:
            return self._send(writer, 403, b"{}")
        packed = msgspec.msgpack.encode(self.hot) if is_asked else msgspec.json.encode(self.warmed)
        return self._send(writer, 200, packed)

    async def _thaw(self) -> None:
        while self.is_frozen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def _beat(self, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        version = kv_events.KV_EVENTS_VERSION
        snapshot = kv_events.Snapshot(version, self.epoch, 0, self.block_format, BLOCK_SIZE, 1000, 0)
        self._chunk(writer, kv_events.pack(snapshot))
        while True:
            await self._thaw()
            self._chunk(writer, kv_events.pack(kv_events.Heartbeat(self.epoch, 0)))
            await asyncio.sleep(0.1)

    def info(self) -> wire.ModelInfo:
        return wire.ModelInfo(
            served_names=self.served_names,
            model_revision=self.revision,
            block_size=BLOCK_SIZE,
            block_format=self.block_format,
            adapter=self.adapter,
            max_model_len=2048,
            tokenizer_digest=self.bundle.digest,
            kv_capacity_tokens=self.kv_capacity_tokens,
            max_num_seqs=8,
            engine_epoch=self.epoch,
        )

    @staticmethod
    def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    @staticmethod
    def _send(writer: asyncio.StreamWriter, status: int, body: bytes) -> bool:
        head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
        writer.write(head + body)
        return True


@dataclass
class World:
    """A gateway in front of stub engines, behind a routing table on disk."""

    gateway: Gateway
    engines: dict[str, StubEngine]
    table_path: Path
    log_path: Path
    table: wire.RoutingTable

    @property
    def url(self) -> str:
        return self.gateway.url

    def client(self, key: str = "none", **more: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=DEADLINE_S, **more)

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=DEADLINE_S)

    def publish(self) -> None:
        """Replace the table on disk, atomically."""
        temporary = self.table_path.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(self.table))
        temporary.replace(self.table_path)

    def routable(self) -> set[str]:
        return {replica.id for replica in self.gateway.fleet.replicas() if replica.is_candidate}

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def until_routable(self, *names: str) -> None:
        await self.until(lambda: self.routable() == set(names))

    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def is_quiet(self) -> bool:
        """Nothing is counted as in flight or queued anywhere."""
        return all(replica.in_flight == 0 and replica.queued_tokens == 0 for replica in self.gateway.fleet.replicas())


@pytest.fixture
def stub_bundle() -> TokenizerBundle:
    return bundle()


@pytest.fixture
async def make_engine(stub_bundle) -> AsyncIterator[Callable[..., Any]]:
    """Start a stub engine with the given knobs."""
    engines: list[StubEngine] = []

    async def make(**knobs: Any) -> StubEngine:
        engine = StubEngine(**{"bundle": stub_bundle, **knobs})
        await engine.start()
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.kill()


@pytest.fixture
async def make_world(make_engine, tmp_path) -> AsyncIterator[Callable[..., Any]]:
    """Start a gateway in front of `engines` (a count, or engines by id), one deployment `d` that serves `m`."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            engines: int | dict[str, StubEngine] = 2, deployment: Mapping[str, Any] | None = None, **config: Any
        ) -> World:
            if isinstance(engines, int):
                engines = {f"r{number}": await make_engine() for number in range(engines)}
            replicas = [wire.Replica(id=name, url=engine.url) for name, engine in engines.items()]
            entry = {"name": "d", "namespace": "n", "served_names": ["m"], "replicas": replicas, **(deployment or {})}
            path, log = tmp_path / "table.json", tmp_path / "access.jsonl"
            settings = {"port": 0, "routing_table": path, "access_log": str(log), **config}
            world = World(
                Gateway(GatewayConfig(**settings)),
                engines,
                path,
                log,
                wire.RoutingTable(deployments=[wire.Deployment(**entry)]),
            )
            world.publish()
            await world.gateway.start()
            stack.push_async_callback(world.gateway.close)
            if engines:
                await world.until_routable(*engines)
            return world

        yield make


@pytest.fixture
async def world(make_world) -> World:
    """Two engines behind a gateway."""
    return await make_world(2)
