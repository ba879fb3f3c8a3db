"""One child process: in a group of its own, its output in a file, and no life after its parent's."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
_FRAME = " \t│╭╮╰╯─"
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Child:
    """A running child process; `exited` is set once it and whatever it left behind are gone."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self.log = log
        self.pid = process.pid
        self.exit_code: int | None = None
        self.exited = asyncio.Event()
        self._reaper: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str],
        death_signal: signal.Signals = signal.SIGTERM,
        on_exit: Callable[[], None] = lambda: None,
    ) -> "Child":
        """Start `argv` with its output appended to `log`.

        The child gets `death_signal` when this process dies, in whatever way, and is alone in its group, so that Ctrl-C
        in the terminal reaches only us.

        Raises:
            OSError: the program cannot be started, or the log not written.
        """
        parent = os.getpid()

        def bind_to_parent() -> None:
            if _LIBC is not None:
                _LIBC.prctl(PR_SET_PDEATHSIG, int(death_signal))
                if os.getppid() != parent:
                    os._exit(1)

        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=bind_to_parent,
            )
        child = cls(process, log)
        child._reaper = asyncio.create_task(child._reap(on_exit))
        return child

    def send(self, what: signal.Signals) -> None:
        """Signal the process itself, so that it can end its own children in order."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(what)

    def kill(self) -> None:
        """End the whole group at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL to the group after `grace_s` seconds; returns when it is gone."""
        self.send(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.exited.wait(), grace_s)
        except TimeoutError:
            self.kill()
            await self.exited.wait()

    def how_it_ended(self) -> str:
        """Exit code or signal, and the last line it wrote."""
        if self.exit_code is not None and self.exit_code < 0:
            how = f"was ended by {signal.Signals(-self.exit_code).name}"
        else:
            how = f"exited with code {self.exit_code}"
        last = last_line(self.log)
        return f"{how}: {last}" if last and not (self.exit_code or 0) < 0 else how

    async def _reap(self, on_exit: Callable[[], None]) -> None:
        self.exit_code = await self._process.wait()
        self.kill()
        self.exited.set()
        on_exit()


def last_line(log: Path, limit: int = 400) -> str:
    """The last line with words on it, out of any box drawn around it, cut to `limit` characters."""
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 16384, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    bare = (line.strip(_FRAME) for line in reversed(lines))
    return next((line[:limit] for line in bare if line), "")
