"""Messages over the socket pair between a server process and its engine process.

Each goes after its length, as uint32 of little-endian bytes. Who reads is woken by the kernel alone: a library's thread
between them cost the server more than all else that it does once a step.
"""

import asyncio
import contextlib
import socket
import struct

_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 16


def framed(message: bytes) -> bytes:
    return _LENGTH.pack(len(message)) + message


class Reader:
    """Takes messages from a socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._held = bytearray()

    def read(self) -> list[bytearray]:
        """The messages that one read completes, which may be none.

        Raises:
            EOFError: the other side has closed, and all that it had sent has been read.
        """
        try:
            data = self._connection.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except ConnectionResetError:  # it has closed without having read all
            data = b""
        if not data:
            raise EOFError
        held = self._held
        held += data
        messages: list[bytearray] = []
        begin = 0
        while (start := begin + _LENGTH.size) <= len(held):
            end = start + _LENGTH.unpack_from(held, begin)[0]
            if end > len(held):
                break
            messages.append(held[start:end])
            begin = end
        del held[:begin]
        return messages


class Writer:
    """Sends messages from an event loop, at once where the other side keeps up; how much waits for it has no bound.

    What would be sent to one that has closed is lost.
    """

    def __init__(self, connection: socket.socket) -> None:
        """connection: does not block."""
        self._connection = connection
        self._unsent = bytearray()

    def write(self, message: bytes) -> None:
        is_waiting = bool(self._unsent)
        self._unsent += framed(message)
        if not is_waiting and not self._flush():
            asyncio.get_running_loop().add_writer(self._connection, self._go_on)

    def close(self) -> None:
        if self._unsent:
            asyncio.get_running_loop().remove_writer(self._connection)
        self._unsent.clear()

    def _go_on(self) -> None:
        if self._flush():
            asyncio.get_running_loop().remove_writer(self._connection)

    def _flush(self) -> bool:
        """True if nothing is left."""
        try:
            with contextlib.suppress(BlockingIOError):
                del self._unsent[: self._connection.send(self._unsent)]
        except OSError:
            self._unsent.clear()
        return not self._unsent
