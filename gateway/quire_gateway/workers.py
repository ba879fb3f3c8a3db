"""One gateway as several processes: they share its doors, and are peers to one another on inner ports of their own.

    supervisor   opens every socket, starts the workers, kills one whose loop stands still, starts one again that fell,
                 passes signals on
    worker i     accepts at the doors beside the others, and alone at inner port i of the loopback

The doors are one listening socket each, not one a worker: what waits to be accepted is nobody's own, so that a worker
that dies takes none of it along.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from quire_api.errors import UserError
from quire_api.signals import ending_signals
from quire_gateway.config import GatewayConfig
from quire_gateway.heartbeat import TURN_S, Heartbeats, Silence

log = logging.getLogger(__name__)

_BACKLOG = 2048
_FIRST_DELAY_S, _LONGEST_DELAY_S, _STABLE_AFTER_S = 0.1, 10.0, 30.0

RestartCause = Literal["ended", "hung"]


class CannotListen(UserError):
    """The address is in use or not ours."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One of a gateway's processes, and the open sockets it was given.

    number: 0 to the number of workers less one. inner: addresses of all workers' inner ports, this one's at `number`.
    leash: a pipe that ends with the supervisor, and with it the worker. beats: where it shows that its loop turns.
    restarts: how often this number was started again, by what had become of the process before.
    """

    number: int
    door: socket.socket
    tls_door: socket.socket | None
    inner_door: socket.socket
    inner: tuple[str, ...]
    leash: int
    beats: Heartbeats
    restarts: Mapping[RestartCause, int]


@dataclass(slots=True)
class _Child:
    """What the supervisor remembers of one number: when it was last started, and how its processes ended before."""

    started_at: float
    delay_s: float
    silence: Silence
    is_killed: bool = False
    restarts: Counter[RestartCause] = field(default_factory=Counter)


class Supervisor:
    """Runs `work(worker)` in `config.workers` processes until it is told to end."""

    def __init__(self, config: GatewayConfig, work: Callable[[Worker], int]) -> None:
        """
        Raises:
            CannotListen
        """
        self._work = work
        self._signals = ending_signals()
        self._door = listen(config.host, config.port, "--port")
        has_tls = config.tls_certificate is not None
        self._tls_door = listen(config.host, config.tls_port, "--tls-port") if has_tls else None
        self._inner_doors = [listen("127.0.0.1", 0, "--workers") for _ in range(config.workers)]
        self._inner = tuple(f"127.0.0.1:{each.getsockname()[1]}" for each in self._inner_doors)
        self._leash, self._hand = os.pipe()
        self._beats = Heartbeats(config.workers)
        self._silence_s = config.worker_silence_s
        self._drain_left_s = config.drain_grace_s + config.shutdown_timeout_s
        """Once they drain: for so long none is killed for its silence."""
        self._children: dict[int, int] = {}
        """Number of the worker by its process id."""
        self._started: dict[int, _Child] = {}
        self._due: dict[int, float] = {}
        self._exit_code = 0
        self._is_ending = False

    @property
    def port(self) -> int:
        return int(self._door.getsockname()[1])

    @property
    def tls_port(self) -> int:
        """0: there is no TLS."""
        return 0 if self._tls_door is None else int(self._tls_door.getsockname()[1])

    def run(self) -> int:
        """Exit code: 0 after a drain; a worker's own, if it is one that the user can correct."""
        watched = {*self._signals, signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        now = time.monotonic()
        for number in range(len(self._inner_doors)):
            self._start(number, now)
        while self._children or self._due:
            before, now = now, time.monotonic()
            self._listen_for_beats(now - before)
            for number in [each for each, due in self._due.items() if due <= now]:
                del self._due[number]
                self._start(number, now)
            nap = max(min(self._due.values(), default=now + TURN_S) - now, 0.0)
            got = signal.sigtimedwait(watched, min(nap, TURN_S))
            if got is not None and got.si_signo in self._signals:
                if self._is_ending:
                    # A second signal means: at once.
                    self._drain_left_s = 0.0
                self._pass_on(signal.SIGTERM)
            self._reap()
        return self._exit_code

    def _start(self, number: int, now: float) -> None:
        before = self._started.get(number)
        delay = _FIRST_DELAY_S
        if before is not None and now - before.started_at < _STABLE_AFTER_S:
            delay = min(2 * before.delay_s, _LONGEST_DELAY_S)
        restarts = Counter[RestartCause]() if before is None else before.restarts
        self._started[number] = _Child(now, delay, Silence(self._beats[number]), restarts=restarts)
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            self._children[pid] = number
            return
        # What the child raises must not run the supervisor's own way out.
        code = 1
        try:
            for each in (signal.SIGINT, signal.SIGHUP):
                signal.signal(each, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*self._signals, signal.SIGCHLD})
            os.close(self._hand)
            for other, door in enumerate(self._inner_doors):
                if other != number:
                    door.close()
            own = self._inner_doors[number]
            worker = Worker(
                number, self._door, self._tls_door, own, self._inner, self._leash, self._beats, dict(restarts)
            )
            code = self._work(worker)
        except BaseException:
            log.exception("worker %d failed", number)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _listen_for_beats(self, elapsed_s: float) -> None:
        """Kill who has been silent for too long: SIGTERM would not reach a loop that stands still."""
        if self._is_ending:
            self._drain_left_s -= min(elapsed_s, 2 * TURN_S)
        for pid, number in self._children.items():
            child = self._started[number]
            child.silence.turn(self._beats[number], elapsed_s)
            is_draining = self._is_ending and self._drain_left_s > 0
            if child.is_killed or is_draining or not 0 < self._silence_s <= child.silence.seconds:
                continue
            log.error("worker %d hangs: its loop has not turned for %.0f s; it is killed", number, self._silence_s)
            child.is_killed = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _pass_on(self, number: signal.Signals) -> None:
        if not self._is_ending:
            self._is_ending = True
            self._due.clear()
            # From now on the doors are open for as long as a worker keeps them.
            for door in (self._door, self._tls_door, *self._inner_doors):
                if door is not None:
                    door.close()
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _reap(self) -> None:
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found:
                continue
            number = self._children.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if self._is_ending:
                continue
            if code == 2:
                self._exit_code = code
                self._pass_on(signal.SIGTERM)
                continue
            child = self._started[number]
            child.restarts["hung" if child.is_killed else "ended"] += 1
            delay = child.delay_s
            log.error("worker %d ended with code %d; it starts again in %.1f s", number, code, delay)
            self._due[number] = time.monotonic() + delay


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        CannotListen
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        door = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except OSError as error:
        raise cannot_listen(host, port, flag, error) from None
    door.setblocking(False)
    return door


def cannot_listen(host: str, port: int, flag: str, error: OSError) -> CannotListen:
    """Why, and what to do."""
    reason = error.strerror or error
    return CannotListen(f"cannot listen on {host}:{port}: {reason}. Choose another {flag}, or free it.")
