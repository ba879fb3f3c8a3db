"""An engine process as its parent holds it: it can be spawned before its parent can speak to it.

Nothing that takes long is imported here, so that the child's imports and those of its parent go on side by side.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from quire_api.signals import ending_signals

if TYPE_CHECKING:
    from quire_runtime.config import EngineConfig

CLOSE_S = 5.0
PROGRAM = ("-m", "quire_runtime.engine.process")
TERMINAL_SIGNALS = frozenset({signal.SIGINT, signal.SIGHUP})


class EngineChild:
    """A process that imports the engine at once and loads a model when it is told which.

    It ends when it is closed, or when this process does.
    program: what Python runs, with the descriptor of its end of a socket pair behind it. connection: our end.
    """

    def __init__(self, program: Sequence[str] = PROGRAM) -> None:
        self._is_configured = False
        self.connection, theirs = socket.socketpair()
        # They reach the whole group of a terminal, and what they mean is the parent's to say; a mask is inherited.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINAL_SIGNALS)
        try:
            self.process = subprocess.Popen(
                [sys.executable, *program, str(theirs.fileno())],
                # Threads that spin while they wait take the cores from other replicas; a setting of the user's stays.
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,
                stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else None,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()

    def configure(self, config: "EngineConfig") -> None:
        """Say once what is to be loaded."""
        self._is_configured = True
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(config.model_dump_json().encode() + b"\n")
            self.process.stdin.flush()

    def hang_up(self) -> None:
        """Ask it to end; it needs a moment."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def close(self) -> None:
        """End it, and wait until it has ended. May be called again."""
        self.hang_up()
        if not self._is_configured:
            # It holds nothing yet, and hears nothing in the midst of an import.
            self.process.kill()
        try:
            self.process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.connection.close()


@contextlib.contextmanager
def early_child() -> Iterator[EngineChild]:
    """A child that ends with the block. Until somebody else handles `ending_signals`, they end both processes.

    Not by an exception, which an import under way may swallow. To be entered in the main thread.
    """
    with contextlib.ExitStack() as held:

        def end(_number: int, _frame: FrameType | None) -> None:
            held.close()
            os._exit(0)

        for number in ending_signals():
            signal.signal(number, end)
        yield held.enter_context(contextlib.closing(EngineChild()))


def _has_descriptor(stream: object) -> bool:
    try:
        stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    return True
