"""The front end's side of an engine process: start it, ask it, notice when it dies."""

import asyncio
import contextlib
import itertools
import logging
import signal
import threading
import time
from collections.abc import AsyncGenerator

import msgspec
import numpy as np

from quire_api.warming import HotPrefix
from quire_runtime.config import EngineConfig
from quire_runtime.engine.channel import Reader, Writer
from quire_runtime.engine.child import CLOSE_S, EngineChild
from quire_runtime.engine.errors import EngineClosed, EngineDied, EngineStartFailed, RequestRefused
from quire_runtime.engine.kv_fan_out import KVFanOut
from quire_runtime.engine.messages import (
    AbortRequests,
    AddRequest,
    Drain,
    EngineFailed,
    EngineLoading,
    EngineReady,
    EngineStats,
    FromEngine,
    Heartbeat,
    HotList,
    KVFrames,
    PromptLogprobs,
    RequestRejected,
    Step,
    TellHot,
    ToEngine,
    WatchKV,
)
from quire_runtime.engine.request import EngineRequest
from quire_runtime.engine.stream import ChoiceDelta, Stream
from quire_runtime.scheduler.request import FinishReason

log = logging.getLogger(__name__)

LAST_WORDS_S = 0.5
FINISH_REASONS = tuple(FinishReason)
"""By value; calling the enumeration for each token is slow."""
ERROR = FinishReason.ERROR.value


class AsyncEngineClient:
    """One engine process and the requests sent to it; belongs to one event loop.

    The process is `child` where it was spawned before, which this object then owns; else it starts with the object. It
    ends with `close`, or when this process does.
    """

    def __init__(self, config: EngineConfig, child: EngineChild | None = None) -> None:
        self.config = config
        self.stats = EngineStats()
        self.info: EngineReady | None = None
        self.loading: EngineLoading | None = None
        """What it last said of its start."""
        self._child = child or EngineChild()
        self._process = self._child.process
        self._connection = self._child.connection
        self._connection.setblocking(False)
        self._inbound = Reader(self._connection)
        self._outbound = Writer(self._connection)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._streams: dict[int, Stream] = {}
        self._hot_lists: dict[int, asyncio.Future[list[HotPrefix]]] = {}
        self._handles = itertools.count(1)
        self._failure: Exception | None = None
        self._is_closing = False
        self._heard_at: float | None = None
        self._kv = KVFanOut(lambda number: self._send(WatchKV(number)))
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_listening = False
        self._is_ready = asyncio.Event()
        self._has_failed = asyncio.Event()
        self._has_answered = asyncio.Event()
        self._first_token_s = 0.0
        self._has_exited = asyncio.Event()
        self._child.configure(config)

    @property
    def is_alive(self) -> bool:
        """The process runs and has not reported a failure."""
        return self._failure is None and self._process.poll() is None

    @property
    def heartbeat_age_s(self) -> float:
        """Seconds since the engine's loop last spoke; 0 until it is ready."""
        return 0.0 if self._heard_at is None else time.monotonic() - self._heard_at

    @property
    def num_requests(self) -> int:
        return len(self._streams)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self) -> EngineReady:
        """Wait until the model is loaded. A start that fails leaves nothing behind: this object is closed then.

        Raises:
            EngineStartFailed: the configuration or the model is at fault; the message says what to do.
            EngineDied: the process ended for another reason.
        """
        self._listen()
        await self._is_ready.wait()
        if self._failure is not None:
            await self.close()
            raise self._failure
        assert self.info is not None
        return self.info

    async def died(self) -> Exception:
        """Wait until the engine fails, and say by what."""
        self._listen()
        await self._has_failed.wait()
        assert self._failure is not None
        return self._failure

    async def first_token(self) -> float:
        """Wait until a request has its first token, and say how many seconds this took it in the engine."""
        self._listen()
        await self._has_answered.wait()
        return self._first_token_s

    def open(self, request: EngineRequest) -> Stream:
        """A request sent to the engine; to be closed by the caller, who thereby aborts what still runs of it.

        A refusal and the engine's death are raised where its deltas are taken.
        """
        self._listen()
        handle = next(self._handles)
        running = request.params.n - len(request.ended)
        stream = Stream(running, lambda stream: self._closed(handle, stream))
        failure = self._failure
        if failure is None:
            try:
                message = _packed(handle, request)
            except (OverflowError, ValueError):
                failure = RequestRefused("invalid", "Token ids must be whole numbers from 0 to 4294967295.")
            else:
                self._send(message)
        self._streams[handle] = stream
        self._idle.clear()
        if failure is not None:
            stream.fail(failure)
        return stream

    def kv_events(self) -> AsyncGenerator[bytes, None]:
        """A snapshot of the prefix cache and from there on every change, as whole frames of quire_api.kv_events.

        Ends when the engine does, or when the reader is too far behind.
        """
        self._listen()
        return self._kv.listen()

    async def hot_prefixes(self, max_prefixes: int, max_tokens: int) -> list[HotPrefix]:
        """The cached prefixes that prompts have found most often; the bounds are those of kv.hot.hottest.

        Raises:
            EngineDied
        """
        self._listen()
        if self._failure is not None:
            raise self._failure
        number = next(self._handles)
        told = self._hot_lists[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(TellHot(number, max_prefixes, max_tokens))
            return await told
        finally:
            del self._hot_lists[number]

    async def drain(self, timeout_s: float) -> bool:
        """Have the engine refuse new requests, wait for those that run; True if all of them ended in time."""
        if self._failure is None:
            self._send(Drain())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return not self._streams

    async def close(self) -> None:
        """End the process and fail what still runs."""
        if self._is_closing:
            return
        self._listen()
        self._is_closing = True
        self._child.hang_up()
        try:
            await asyncio.wait_for(self._has_exited.wait(), CLOSE_S)
        except TimeoutError:
            self._process.kill()
            await self._has_exited.wait()
        self._fail(EngineClosed("The engine was closed."))
        asyncio.get_running_loop().remove_reader(self._connection)
        self._outbound.close()
        self._connection.close()

    def _listen(self) -> None:
        if not self._is_listening and not self._is_closing:
            self._is_listening = True
            loop = asyncio.get_running_loop()
            loop.add_reader(self._connection, self._receive)
            threading.Thread(target=self._wait_for_exit, args=(loop,), name="engine-exit", daemon=True).start()

    def _wait_for_exit(self, loop: asyncio.AbstractEventLoop) -> None:
        code = self._process.wait()
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._on_exit, code)

    def _on_exit(self, code: int) -> None:
        self._has_exited.set()
        if not self._is_closing:
            # A last message may still lie in the socket: let the receiver take it first.
            asyncio.get_running_loop().call_later(LAST_WORDS_S, self._fail, _ended(code))

    def _closed(self, handle: int, stream: Stream) -> None:
        del self._streams[handle]
        if not self._streams:
            self._idle.set()
        if stream.running and not stream.has_failed and not self._is_closing:
            self._send(AbortRequests([handle]))

    def _receive(self) -> None:
        """Take every message that has come, then tell the readers: one that is behind takes several steps at once."""
        news: list[Stream] = []
        try:
            for message in self._inbound.read():
                self._hear(self._decoder.decode(message), news)
        except EOFError:
            asyncio.get_running_loop().remove_reader(self._connection)
        except Exception as error:
            self._fail(EngineDied(f"What the engine said could not be read: {error}"))
            raise
        finally:
            for stream in news:
                stream.tell()

    def _hear(self, message: FromEngine, news: list[Stream]) -> None:
        if isinstance(message, EngineLoading):
            self.loading = message
            return
        if not (isinstance(message, KVFrames) and message.is_pulse):
            self._heard_at = time.monotonic()
        match message:
            case Step():
                self._spread(message, news)
            case Heartbeat(stats=stats):
                self.stats = stats
            case RequestRejected(handle=handle, code=code, message=text):
                if handle in self._streams:
                    self._streams[handle].fail(RequestRefused(code, text))
            case KVFrames():
                self._kv.publish(message)
            case HotList(number=number, prefixes=prefixes):
                if (told := self._hot_lists.get(number)) is not None and not told.done():
                    told.set_result(prefixes)
            case EngineReady():
                self.info = message
                self._is_ready.set()
            case EngineFailed(message=text, is_user_error=is_user_error, reason=reason):
                self._fail(EngineStartFailed(text, reason) if is_user_error else EngineDied(text, reason))

    def _spread(self, step: Step, news: list[Stream]) -> None:
        """One message of a step to its streams, of which those that had nothing before are added to `news`."""
        self.stats = step.stats
        for part in step.prompt_logprobs:
            self._keep_prompt_logprobs(part)
        times = {of_request.handle: of_request for of_request in step.times}
        if step.times and not self._has_answered.is_set():
            self._first_token_s = step.times[0].queue_s + step.times[0].prefill_s
            self._has_answered.set()
        columns = (
            np.frombuffer(data, kind).tolist()
            for data, kind in (
                (step.handles, "<i8"),
                (step.choices, "<i4"),
                (step.tokens, "<i4"),
                (step.finish, "u1"),
                (step.cached, "<i4"),
            )
        )
        streams = self._streams
        for index, (handle, choice, token, finish, cached) in enumerate(zip(*columns, strict=True)):
            if (stream := streams.get(handle)) is None:
                continue
            delta = ChoiceDelta(choice, [token] if token >= 0 else [], FINISH_REASONS[finish])
            if cached >= 0:
                delta.cached_tokens = cached
            if finish == ERROR:
                delta.error = step.errors.get(handle)
            if step.logprobs and (logprobs := step.logprobs[index]) is not None:
                delta.logprobs = [logprobs]
            if times:
                delta.times = times.pop(handle, None)
            if stream.prompt_logprobs is not None:
                delta.prompt_logprobs, stream.prompt_logprobs = stream.prompt_logprobs, None
            if stream.add(delta):
                news.append(stream)

    def _keep_prompt_logprobs(self, part: PromptLogprobs) -> None:
        if stream := self._streams.get(part.handle):
            kept = stream.prompt_logprobs if stream.prompt_logprobs is not None else [None]
            stream.prompt_logprobs = [*kept, *part.positions]

    def _fail(self, failure: Exception) -> None:
        if self._failure is not None:
            return
        self._failure = failure
        self._is_ready.set()
        self._has_failed.set()
        self._kv.close()
        for told in self._hot_lists.values():
            if not told.done():
                told.set_exception(failure)
        for stream in list(self._streams.values()):
            stream.fail(failure)

    def _send(self, message: ToEngine) -> None:
        self._outbound.write(self._encoder.encode(message))


def _packed(handle: int, request: EngineRequest) -> AddRequest:
    """
    Raises:
        OverflowError, ValueError: token ids are none.
    """
    prompt, *outputs = (np.asarray(ids, dtype="<u4").tobytes() for ids in (request.token_ids, *request.outputs))
    return AddRequest(
        handle,
        prompt,
        request.params,
        request.request_id,
        request.priority,
        request.cache_salt,
        time.monotonic(),
        outputs,
        list(request.ended),
        request.is_warming,
    )


def _ended(code: int) -> EngineDied:
    """Of a process that said nothing of its end."""
    if code == -signal.SIGKILL:
        return EngineDied(
            "The engine process was killed by signal 9. If nobody did it, the kernel did, for want of memory (dmesg "
            "tells): use a machine or a memory limit with more.",
            "EngineKilled",
        )
    if code < 0:
        return EngineDied(f"The engine process was killed by signal {-code}.", "EngineKilled")
    return EngineDied(f"The engine process ended with exit code {code}.")
