"""The engine process: one loop that owns the device, two threads that carry messages.

    python -m quire_runtime.engine.process DESCRIPTOR

It imports at once. The parent writes the EngineConfig as one line of JSON on standard input when it knows it, and keeps
the pipe open: when it closes, or the parent dies, this process ends. Where the line asks for a GPU, its context is made
beside what is left of the imports. DESCRIPTOR is our end of a socket pair, over which messages go both ways.
"""

import contextlib
import faulthandler
import gc
import logging
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from quire_api.errors import UserError
from quire_api.warming import HotPrefix
from quire_runtime.config import EngineConfig
from quire_runtime.engine.channel import Reader, framed
from quire_runtime.engine.child import TERMINAL_SIGNALS
from quire_runtime.engine.faults import diagnose
from quire_runtime.engine.gpu_context import make_context
from quire_runtime.engine.kv_publisher import KVPublisher
from quire_runtime.engine.liveness import Liveness
from quire_runtime.engine.messages import (
    AbortRequests,
    AddRequest,
    Drain,
    EngineFailed,
    EngineLoading,
    EngineReady,
    FromEngine,
    Heartbeat,
    HotList,
    KVFrames,
    RequestRejected,
    Step,
    TellHot,
    ToEngine,
    WatchKV,
)
from quire_runtime.kv.hot import HitBlocks, hottest

if TYPE_CHECKING:
    from quire_runtime.engine.engine import Engine

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
QUIET_S = 0.02
"""Without a message for so long, the engine prepares for steps to come; the next message waits a moment then."""
PULSE_S = 0.6
LINGER_S = 60
"""How long last words wait for a parent that is still importing; one that has died ends this process before."""
HUNG_S = 120.0
"""A loop that has not turned for so long has its stacks written to standard error."""
REJECTION_CODES = {
    "QueueFull": "queue_full",
    "PromptTooLong": "context_length_exceeded",
    "KVTooSmall": "kv_cache_too_small",
    "Draining": "draining",
}


class Carrier:
    """Our end of the channel, a thread for each way, so that packing and sending overlap with the device's work."""

    def __init__(self, descriptor: int) -> None:
        self.inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[FromEngine | Callable[[], FromEngine | None] | None] = queue.SimpleQueue()
        self._connection = socket.socket(fileno=descriptor)
        self._connection.set_inheritable(False)
        self.pulse: Callable[[], FromEngine | None] = lambda: None
        """Makes what is sent when nothing has been posted for PULSE_S; called on the sender's thread."""
        self._sender = threading.Thread(target=self._send, name="sender", daemon=True)
        self._sender.start()
        threading.Thread(target=self._receive, name="receiver", daemon=True).start()

    def post(self, message: FromEngine | Callable[[], FromEngine]) -> None:
        """Send a message, or what a function makes on the sender's thread."""
        self._outbox.put(message)

    def close(self) -> None:
        """Send what is posted, then end."""
        self._outbox.put(None)
        self._sender.join(timeout=LINGER_S)

    def _send(self) -> None:
        encoder = msgspec.msgpack.Encoder()
        with contextlib.suppress(OSError):  # the parent has gone, and this process goes too
            while True:
                try:
                    message = self._outbox.get(timeout=PULSE_S)
                except queue.Empty:
                    message = self.pulse
                if message is None:
                    break
                if (told := message() if callable(message) else message) is not None:
                    self._connection.sendall(framed(encoder.encode(told)))

    def _receive(self) -> None:
        reader = Reader(self._connection)
        decoder = msgspec.msgpack.Decoder(ToEngine)
        with contextlib.suppress(EOFError, OSError):
            while True:
                for message in reader.read():
                    self.inbox.put(decoder.decode(message))


class Loop:
    """Drains the inbox, steps the engine, posts one message per step; a heartbeat while idle."""

    def __init__(self, engine: "Engine", carrier: Carrier, epoch: str) -> None:
        self._engine = engine
        self._carrier = carrier
        self._kv = KVPublisher(
            engine.kv_log,
            engine.prefix_keys,
            epoch=epoch,
            block_size=engine.config.block_size,
            capacity=engine.loaded.memory.num_blocks - 1,
            post=carrier.post,
        )
        self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        self._liveness = Liveness(time.monotonic(), time.thread_time())
        carrier.pulse = self._pulse
        self._sequence = 0
        self._last_post = 0.0
        self._guarded_at = 0.0
        self._is_prepared = False

    def run(self) -> None:
        while True:
            self._guard()
            self._liveness.turned(time.monotonic(), time.thread_time())
            self._drain_inbox()
            outputs = self._engine.step()
            self._kv.turn()
            if outputs is not None and (len(outputs.handles) or outputs.prompt_logprobs):
                self._sequence += 1
                self._post(
                    Step(
                        sequence=self._sequence,
                        handles=outputs.handles.astype("<i8", copy=False).tobytes(),
                        choices=outputs.choices.astype("<i4", copy=False).tobytes(),
                        tokens=outputs.tokens.astype("<i4", copy=False).tobytes(),
                        finish=outputs.finish.astype("u1", copy=False).tobytes(),
                        cached=outputs.cached.astype("<i4", copy=False).tobytes(),
                        logprobs=outputs.logprobs,
                        prompt_logprobs=outputs.prompt_logprobs,
                        stats=self._engine.stats,
                        errors=outputs.errors,
                        times=outputs.times,
                    )
                )
            elif time.monotonic() - self._last_post >= HEARTBEAT_S:
                self._post(Heartbeat(time.monotonic(), self._engine.stats))

    def _post(self, message: FromEngine) -> None:
        self._last_post = time.monotonic()
        self._carrier.post(message)

    def _drain_inbox(self) -> None:
        inbox = self._carrier.inbox
        if not self._engine.has_work:
            most = HEARTBEAT_S if self._is_prepared else QUIET_S
            try:
                self._take(inbox.get(timeout=min(most, self._kv.due_in_s)))
            except queue.Empty:
                self._prepare()
        with contextlib.suppress(queue.Empty):
            while spare_s := self._engine.spare_s:
                self._take(inbox.get(timeout=spare_s))
            while True:
                self._take(inbox.get_nowait())

    def _prepare(self) -> None:
        """Until there is a message or nothing is left to prepare, but no longer than the loop may be silent."""
        until = time.monotonic() + HEARTBEAT_S
        while not self._is_prepared and self._carrier.inbox.empty() and time.monotonic() < until:
            self._is_prepared = not self._engine.prepare()

    def _take(self, message: ToEngine) -> None:
        match message:
            case AddRequest():
                self._add(message)
            case AbortRequests(handles=handles):
                for handle in handles:
                    self._engine.abort(handle)
            case Drain():
                self._engine.drain()
            case WatchKV(number=number):
                self._kv.watch(number)
            case TellHot():
                # Copied here; sorted on the sender's thread, where the steps after it wait for a moment.
                self._carrier.post(partial(_hot_list, message, self._engine.hit_blocks()))

    def _add(self, message: AddRequest) -> None:
        try:
            token_ids = np.frombuffer(message.token_ids, "<u4").tolist()
            self._engine.add(
                message.handle,
                token_ids,
                message.params,
                message.priority,
                message.cache_salt,
                arrived_s=message.sent_s or None,
                outputs=[np.frombuffer(output, "<u4").tolist() for output in message.outputs],
                ended=message.ended,
                is_warming=message.is_warming,
            )
        except UserError as error:
            self._reject(message.handle, REJECTION_CODES.get(type(error).__name__, "invalid"), str(error))

    def _reject(self, handle: int, code: str, reason: str) -> None:
        self._post(RequestRejected(handle, code, reason))

    def _pulse(self) -> KVFrames | None:
        """Called on the sender's thread, which lives on while the loop stands still."""
        is_alive = self._liveness.is_alive(time.monotonic(), time.clock_gettime(self._cpu_clock))
        return self._kv.pulse() if is_alive else None

    def _guard(self) -> None:
        """Have the stacks written if the loop does not come here again in time; needs no interpreter lock."""
        now = time.monotonic()
        if now - self._guarded_at > HUNG_S / 8:
            self._guarded_at = now
            faulthandler.dump_traceback_later(HUNG_S, repeat=True)


def _hot_list(asked: TellHot, seen: HitBlocks | None) -> HotList:
    found = [] if seen is None else hottest(seen, asked.max_prefixes, asked.max_tokens)
    prefixes = [HotPrefix(each.hits, each.token_ids.astype("<u4").tobytes(), each.salt) for each in found]
    return HotList(asked.number, prefixes)


def follow_parent() -> "queue.SimpleQueue[bytes]":
    """End this process when its parent closes our standard input or dies; what it writes until then, line by line."""
    parent = os.getppid()
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def watch() -> None:
        line = b""
        while os.getppid() == parent:
            readable, _, _ = select.select([0], [], [], 1.0)
            if not readable:
                continue
            if not (piece := os.read(0, 65536)):
                break
            line += piece
            if line.endswith(b"\n"):
                lines.put(line)
                line = b""
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
    return lines


def main() -> None:
    started = time.perf_counter()
    for number in TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINAL_SIGNALS)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    lines = follow_parent()
    beside = ThreadPoolExecutor(1, thread_name_prefix="beside-imports")
    told = beside.submit(lambda: EngineConfig.model_validate_json(lines.get()))
    beside.submit(lambda: make_context(told.result().device))
    carrier = Carrier(int(sys.argv[1]))
    epoch = uuid.uuid4().hex
    try:
        # All that an import makes stays: looking for garbage in it takes a twentieth of its time.
        gc.disable()
        from quire_runtime.engine.engine import Engine
        from quire_runtime.engine.load import load

        gc.freeze()
        gc.enable()
        import_s = time.perf_counter() - started
        config = told.result()
        told_s = time.perf_counter()
        loaded = load(config, lambda phase, percent: carrier.post(EngineLoading(phase, percent)))
        engine = Engine(config, loaded)
        carrier.post(
            EngineReady(
                model_revision=loaded.model_revision,
                block_size=config.block_size,
                num_blocks=loaded.memory.num_blocks,
                max_model_len=engine.max_model_len,
                max_num_seqs=config.max_num_seqs,
                epoch=epoch,
                startup_s={"import": import_s, **loaded.startup_s, "total": import_s + time.perf_counter() - told_s},
                architecture=loaded.model_config.architecture,
                num_parameters=loaded.num_parameters,
            )
        )
        gc.collect()
        gc.freeze()
        Loop(engine, carrier, epoch).run()
    except UserError as error:
        carrier.post(EngineFailed(str(error), is_user_error=True, reason=type(error).__name__))
    except Exception as error:
        log.exception("the engine stopped")
        fault = diagnose(error)
        carrier.post(EngineFailed(fault.message, is_user_error=False, reason=fault.reason))
    carrier.close()
    os._exit(1)


if __name__ == "__main__":
    main()
