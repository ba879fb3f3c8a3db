"""One engine's frames to several listeners: each begins with a snapshot of its own time, none is given an older one."""

import asyncio
import contextlib

import pytest

from quire_runtime.engine import kv_fan_out
from quire_runtime.engine.kv_fan_out import KVFanOut
from quire_runtime.engine.messages import KVFrames


class Engine:
    """What was asked of it; the test answers."""

    def __init__(self):
        self.asked = []
        self.fan_out = KVFanOut(self.asked.append)

    def say(self, frames, number=0):
        self.fan_out.publish(KVFrames(frames, number))


@pytest.fixture
def engine():
    return Engine()


async def listen(engine):
    """A listener that has begun to wait, and what it has read so far."""
    read = []

    async def follow():
        async with contextlib.aclosing(engine.fan_out.listen()) as frames:
            async for data in frames:
                read.append(data)

    task = asyncio.create_task(follow())
    await asyncio.sleep(0)
    return task, read


async def leave(task):
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def turn():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_each_listener_gets_a_snapshot_and_what_follows_it(engine):
    first, early = await listen(engine)
    engine.say(b"lost")
    engine.say(b"snapshot 1", 1)
    engine.say(b"a")
    second, late = await listen(engine)
    engine.say(b"b")
    engine.say(b"snapshot 2", 2)
    engine.say(b"c")
    await turn()
    assert early == [b"snapshot 1", b"a", b"b", b"c"]
    assert late == [b"snapshot 2", b"c"]
    assert engine.asked == [1, 2]
    await leave(first)
    assert engine.asked == [1, 2]
    await leave(second)
    assert engine.asked == [1, 2, 0], "nobody listens, so nothing need be recorded"


async def test_listeners_that_wait_together_share_a_snapshot(engine):
    listeners = [await listen(engine) for _ in range(3)]
    engine.say(b"snapshot", 1)
    await turn()
    assert (engine.asked, [read for _, read in listeners]) == ([1], [[b"snapshot"]] * 3)
    for task, _ in listeners:
        await leave(task)


async def test_a_snapshot_from_before_a_silence_is_given_to_nobody(engine):
    first, _ = await listen(engine)
    await leave(first)
    second, read = await listen(engine)
    assert engine.asked == [1, 0, 2]
    engine.say(b"old", 1)
    engine.say(b"new", 2)
    await turn()
    assert read == [b"new"]
    await leave(second)


async def test_the_engines_end_ends_every_stream(engine):
    task, read = await listen(engine)
    engine.say(b"snapshot", 1)
    engine.fan_out.close()
    async with asyncio.timeout(60):
        await task
    assert read == [b"snapshot"]
    late, nothing = await listen(engine)
    await late
    assert nothing == []


async def test_a_listener_that_does_not_read_is_dropped_and_others_are_not(engine, monkeypatch):
    monkeypatch.setattr(kv_fan_out, "MOST_BEHIND_BYTES", 10)
    stuck = engine.fan_out.listen()
    waiting = asyncio.ensure_future(anext(stuck))
    await turn()
    engine.say(b"snapshot", 1)
    assert await waiting == b"snapshot"
    task, read = await listen(engine)
    engine.say(b"s", 2)
    for _ in range(4):
        engine.say(b"12345")
        await turn()
    assert [data async for data in stuck] == [], "it is told by the end of its stream"
    assert read == [b"s", *[b"12345"] * 4]
    await leave(task)
