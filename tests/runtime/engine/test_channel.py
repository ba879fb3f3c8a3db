"""Messages over a real socket pair, however its bytes are cut."""

import asyncio
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_runtime.engine.channel import Reader, Writer, framed

DEADLINE_S = 30
BEYOND_A_BUFFER = 4 << 20


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@given(messages=st.lists(st.binary(max_size=20), max_size=6), cuts=st.lists(st.integers(1, 9)))
def test_messages_are_the_same_however_their_bytes_come(messages: list[bytes], cuts: list[int]):
    stream = b"".join(map(framed, messages))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reader = Reader(ours)
        read: list[bytes] = []
        for cut in [*cuts, len(stream)]:
            piece, stream = stream[:cut], stream[cut:]
            if piece:
                theirs.sendall(piece)
                read += map(bytes, reader.read())
        assert read == messages


def test_all_that_has_come_is_read_at_once_and_then_the_end_is_told(pair):
    ours, theirs = pair
    for message in (b"first", b"", b"last"):
        theirs.sendall(framed(message))
    theirs.close()
    reader = Reader(ours)
    assert reader.read() == [b"first", b"", b"last"]
    with pytest.raises(EOFError):
        reader.read()


def test_the_end_is_the_same_when_the_other_side_left_something_unread(pair):
    ours, theirs = pair
    ours.sendall(framed(b"unread"))
    theirs.sendall(framed(b"last words"))
    theirs.close()
    reader = Reader(ours)
    assert reader.read() == [b"last words"]
    with pytest.raises(EOFError):
        reader.read()


def test_nothing_is_read_from_a_silent_side(pair):
    assert Reader(pair[0]).read() == []


async def test_what_the_other_side_does_not_read_yet_waits_in_its_order(pair):
    ours, theirs = pair
    writer = Writer(ours)
    sent = [b"a" * BEYOND_A_BUFFER, b"b", b"c" * BEYOND_A_BUFFER, b"d"]
    for message in sent:
        writer.write(message)

    def read() -> list[bytes]:
        reader, messages = Reader(theirs), []
        while len(messages) < len(sent):
            messages += map(bytes, reader.read())
        return messages

    assert await asyncio.wait_for(asyncio.to_thread(read), DEADLINE_S) == sent
    writer.close()


async def test_what_is_sent_to_a_side_that_has_gone_is_lost(pair):
    ours, theirs = pair
    writer = Writer(ours)
    writer.write(b"a" * BEYOND_A_BUFFER)
    theirs.close()
    await asyncio.sleep(0)
    writer.write(b"b")
    writer.close()
