"""The frames of the KV event stream, held to vectors that any other implementation can be held to as well."""

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_api import kv_events
from quire_api.kv_events import Batch, Cleared, FrameReader, Heartbeat, Keys, MalformedEvents, Removed, Snapshot, Stored

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("kv_event_vectors.json").read_text())
FRAMES: list[dict[str, Any]] = VECTORS["frames"]
STREAM = b"".join(bytes.fromhex(vector["bytes"]) for vector in FRAMES)


def as_written(value: Any) -> Any:
    """Byte strings as the vectors write them."""
    if isinstance(value, bytes):
        return value.hex()
    return [as_written(each) for each in value] if isinstance(value, list) else value


def test_the_vectors_are_of_this_version() -> None:
    assert VECTORS["version"] == kv_events.KV_EVENTS_VERSION


@pytest.mark.parametrize("vector", FRAMES, ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    (length,) = struct.unpack("<I", data[:4])
    assert length == len(data) - 4
    assert as_written(msgspec.msgpack.decode(data[4:])) == vector["frame"]
    (frame,) = FrameReader().read(data)
    assert kv_events.pack(frame) == data


def test_the_vectors_in_order_are_one_history() -> None:
    held: set[bytes] = set()
    for count, frame in enumerate(FrameReader().read(STREAM), start=1):
        match frame:
            case Keys(keys=keys):
                held.update(kv_events.split_keys(keys))
            case Batch(operations=operations):
                for operation in operations:
                    match operation:
                        case Stored(keys=keys):
                            held.update(kv_events.split_keys(keys))
                        case Removed(keys=keys):
                            held.difference_update(kv_events.split_keys(keys))
                        case Cleared():
                            held.clear()
        if str(count) in VECTORS["held"]:
            assert sorted(key.hex() for key in held) == VECTORS["held"][str(count)]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_it_does_not_matter_how_the_stream_is_cut(cuts: list[int]) -> None:
    reader, frames = FrameReader(), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(edges):
        frames += reader.read(STREAM[start:end])
    assert b"".join(map(kv_events.pack, frames)) == STREAM


@pytest.mark.parametrize("count", [0, 1, kv_events.KEYS_PER_FRAME, 2 * kv_events.KEYS_PER_FRAME + 1])
def test_a_snapshot_says_how_many_keys_follow(count: int) -> None:
    keys = [number.to_bytes(16, "big") for number in range(count)]
    head, *parts = FrameReader().read(kv_events.pack_snapshot("e", 3, 16, 10_000, keys))
    assert head == Snapshot(kv_events.KV_EVENTS_VERSION, "e", 3, 1, 16, 10_000, count)
    assert [key for part in parts if isinstance(part, Keys) for key in kv_events.split_keys(part.keys)] == keys


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", kv_events.MAX_FRAME_BYTES + 1),
        struct.pack("<I", 1) + b"\xc1",
        struct.pack("<I", 9) + msgspec.msgpack.encode(["unheard"]) + b"\0",
        struct.pack("<I", 13) + msgspec.msgpack.encode(["heartbeat", 7]) + b"\0",
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedEvents):
        list(FrameReader().read(data + bytes(16)))


def test_half_a_key_is_refused() -> None:
    with pytest.raises(MalformedEvents):
        kv_events.split_keys(bytes(17))


def test_what_a_later_version_appends_is_ignored() -> None:
    body = msgspec.msgpack.encode(["heartbeat", "e", 5, "later"])
    assert list(FrameReader().read(struct.pack("<I", len(body)) + body)) == [Heartbeat("e", 5)]
