"""One JSON line per request: who was asked, why, how long it took; never a word of a prompt."""

import asyncio
import sys
import time
from pathlib import Path
from select import PIPE_BUF
from typing import BinaryIO

import msgspec

from quire_api.errors import UserError


class BadAccessLog(UserError):
    """The access log cannot be written."""


class Exchange(msgspec.Struct):
    """What became of one request. Times are milliseconds from the moment it was whole."""

    request_id: str
    method: str
    path: str
    peer: str
    model: str = ""
    namespace: str = ""
    deployment: str = ""
    key: str = ""
    """Name of the API key; empty where there are none."""
    replica: str = ""
    reason: str = ""
    status: int = 0
    outcome: str = "ok"
    """`ok`, `refused`, `client_gone`, `broken` (the replica failed in mid-answer) or `error`."""
    detail: str = ""
    attempts: int = 0
    moves: int = 0
    """How often the stream was continued on another replica after one broke."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    miss: str = ""
    """Why no more of the prompt was cached there; empty if all of it was."""
    index_mode: str = ""
    """How the replica's cache was known when it was chosen: EXACT, DEGRADED or FALLBACK."""
    queue_ms: float = 0.0
    """Of that, time in which no replica could take it or it was not its turn."""
    first_byte_ms: float | None = None
    duration_ms: float = 0.0
    bytes_sent: int = 0
    time: float = 0.0
    """Seconds since the epoch when the answer had ended."""

    def ended_by(self, error: BaseException) -> None:
        """It ended by `error`, which is no refusal."""
        self.outcome = "client_gone" if isinstance(error, asyncio.CancelledError) else "error"


class AccessLog:
    """Writes exchanges to `target`: a file, `-` for standard output, empty for nowhere."""

    def __init__(self, target: str) -> None:
        """
        Raises:
            BadAccessLog: the file cannot be written.
        """
        self._file = _open(target)
        self._lines: list[bytes] = []

    def write(self, exchange: Exchange) -> None:
        """Add a line; those of one turn of the loop go out together."""
        if self._file is not None:
            exchange.time = round(time.time(), 3)
            if not self._lines:
                asyncio.get_running_loop().call_soon(self.flush)
            self._lines.append(msgspec.json.encode(exchange) + b"\n")

    def flush(self) -> None:
        if self._file is not None and self._lines:
            lines, self._lines = self._lines, []
            together = b""
            for line in lines:
                if together and len(together) + len(line) > PIPE_BUF:
                    self._put(self._file, together)
                    together = b""
                together += line
            self._put(self._file, together)

    @staticmethod
    def _put(file: BinaryIO, lines: bytes) -> None:
        """In one write: up to PIPE_BUF bytes stay together where several workers write to one pipe."""
        file.write(lines)
        file.flush()


def _open(target: str) -> BinaryIO | None:
    if not target:
        return None
    if target == "-":
        return sys.stdout.buffer
    try:
        return Path(target).open("ab", buffering=0)
    except OSError as error:
        message = (
            f"The access log {target} cannot be written: {error.strerror}. Name another file, or - for standard output."
        )
        raise BadAccessLog(message) from None
