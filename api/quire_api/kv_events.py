"""What an engine tells those who route by its prefix cache: the stream at GET /internal/v1/kv-events.

    stream   := frame*                        frame := length (uint32, little-endian), then that many bytes of msgpack
    content  := Snapshot Keys* (Batch | Heartbeat)*

The contract for other languages is docs/kv-events.md; test vectors: tests/api/kv_event_vectors.json.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from quire_api.blocks import FORMAT_VERSION, KEY_BYTES

KV_EVENTS_VERSION = 1
KV_EVENTS_PATH = "/internal/v1/kv-events"
KV_EVENTS_MEDIA_TYPE = "application/vnd.quire.kv-events"
HEARTBEAT_S = 0.5
"""An engine sends a frame about so often, during a long step too."""
KEYS_PER_FRAME = 4096
MAX_FRAME_BYTES = 16 << 20

_LENGTH = struct.Struct("<I")


class MalformedEvents(Exception):
    """The bytes are not a stream of this contract and version."""


class Stored(msgspec.Struct, tag="stored", array_like=True, frozen=True, gc=False):
    """The blocks `keys` (n x 16 bytes) became findable: each is the parent of the next, `parent` that of the first."""

    parent: bytes
    keys: bytes


class Removed(msgspec.Struct, tag="removed", array_like=True, frozen=True, gc=False):
    """No copy of the blocks `keys` (n x 16 bytes) is findable any more."""

    keys: bytes


class Cleared(msgspec.Struct, tag="cleared", array_like=True, frozen=True, gc=False):
    """No block is findable any more."""


Operation = Stored | Removed | Cleared


class Snapshot(msgspec.Struct, tag="snapshot", array_like=True, frozen=True, gc=False):
    """First frame: what follows is all that is findable after batch `sequence` of this epoch, in `Keys`, then batches.

    capacity: blocks that can ever be findable at once. count: keys that follow.
    """

    version: int
    epoch: str
    sequence: int
    block_format: int
    block_size: int
    capacity: int
    count: int


class Keys(msgspec.Struct, tag="keys", array_like=True, frozen=True, gc=False):
    """Part of a snapshot: n x 16 bytes, in no promised order."""

    keys: bytes


class Batch(msgspec.Struct, tag="batch", array_like=True, frozen=True, gc=False):
    """What one engine step changed, to be applied in order. `sequence` is that of the batch before, plus one."""

    epoch: str
    sequence: int
    operations: list[Operation]


class Heartbeat(msgspec.Struct, tag="heartbeat", array_like=True, frozen=True, gc=False):
    """Nothing has changed since batch `sequence`."""

    epoch: str
    sequence: int


Frame = Snapshot | Keys | Batch | Heartbeat

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def pack(frame: Frame) -> bytes:
    """One frame as it goes over the wire, its length first."""
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


def pack_snapshot(epoch: str, sequence: int, block_size: int, capacity: int, keys: Sequence[bytes]) -> bytes:
    """The frames of a whole snapshot."""
    head = Snapshot(KV_EVENTS_VERSION, epoch, sequence, FORMAT_VERSION, block_size, capacity, len(keys))
    parts = [pack(head)]
    for start in range(0, len(keys), KEYS_PER_FRAME):
        parts.append(pack(Keys(join_keys(keys[start : start + KEYS_PER_FRAME]))))
    return b"".join(parts)


def join_keys(keys: Iterable[bytes]) -> bytes:
    return b"".join(keys)


def split_keys(joined: bytes, kept: int = KEY_BYTES) -> list[bytes]:
    """The first `kept` bytes of each key.

    Raises:
        MalformedEvents: the bytes are not whole keys.
    """
    if len(joined) % KEY_BYTES:
        raise MalformedEvents(f"{len(joined)} bytes are not whole keys of {KEY_BYTES}")
    return [joined[start : start + kept] for start in range(0, len(joined), KEY_BYTES)]


class FrameReader:
    """Cuts a stream, however it is chunked, into frames."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole once `data` has come.

        Raises:
            MalformedEvents: a frame is too long or cannot be decoded; nothing more can be read.
        """
        data = self._rest + data if self._rest else data
        start, end = 0, len(data)
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, start)
            if length > MAX_FRAME_BYTES:
                raise MalformedEvents(f"a frame of {length} bytes is longer than {MAX_FRAME_BYTES}")
            body = start + _LENGTH.size
            if end - body < length:
                break
            start = body + length
            try:
                frame = _decoder.decode(memoryview(data)[body:start])
            except msgspec.MsgspecError as error:
                raise MalformedEvents(f"a frame cannot be read: {error}") from None
            yield frame
        self._rest = data[start:]
