"""What a download needs to know of a store, whichever it is."""

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Digest:
    """What the content of a file must hash to."""

    algorithm: str
    """A name that hashlib knows, or crc32."""
    hex: str


@dataclass(frozen=True, slots=True)
class RemoteFile:
    name: str
    size: int
    """Bytes."""
    identity: str
    """Differs for different contents of the same name: an ETag or a digest."""


class Store(Protocol):
    """One model in a store. Methods are called from several threads; all raise the agent's errors only.

    SourceUnreachable means that asking again may help.
    """

    def files(self) -> list[RemoteFile]:
        """All that a model may be loaded from, names relative to the model's folder."""

    def digest(self, file: RemoteFile) -> Digest | None:
        """The checksum that the store vouches for; None where it has none that can be computed here."""

    def read(self, file: RemoteFile, offset: int) -> AbstractContextManager[Iterator[bytes]]:
        """Its bytes from `offset` on, in pieces of about CHUNK_BYTES."""

    def close(self) -> None: ...


class Hasher:
    """A running checksum, by name."""

    def __init__(self, algorithm: str) -> None:
        self._hash = None if algorithm == "crc32" else hashlib.new(algorithm, usedforsecurity=False)
        self._crc = 0

    def update(self, data: bytes) -> None:
        if self._hash is None:
            self._crc = zlib.crc32(data, self._crc)
        else:
            self._hash.update(data)

    def hexdigest(self) -> str:
        return f"{self._crc:08x}" if self._hash is None else self._hash.hexdigest()
