"""Each key once, and never two workers on one."""

import asyncio

from quire_operator.queue import WakeQueue


async def test_a_key_woken_often_comes_once():
    queue: WakeQueue[str] = WakeQueue()
    for key in ("a", "b", "a", "a"):
        queue.wake(key)
    assert [await queue.take(), await queue.take()] == ["a", "b"]


async def test_a_key_woken_while_worked_on_comes_again_after():
    queue: WakeQueue[str] = WakeQueue()
    queue.wake("a")
    key = await queue.take()
    queue.wake("a")
    queue.wake("b")
    assert await queue.take() == "b"
    queue.done(key)
    assert await queue.take() == "a"


async def test_the_newest_alarm_counts():
    queue: WakeQueue[str] = WakeQueue()
    queue.wake_in("a", 0.01)
    queue.wake_in("a", 3600)
    queue.wake_in("b", 3600)
    queue.wake_in("b", 0.05)
    assert await asyncio.wait_for(queue.take(), 60) == "b"


async def test_what_has_failed_waits_apart_until_it_has_not():
    queue: WakeQueue[str] = WakeQueue()
    for key in ("bad", "good"):
        queue.wake(key)
    queue.done(await queue.take(), failed=True)
    queue.done(await queue.take())
    for key in ("bad", "good"):
        queue.wake(key)
    assert (await queue.take(), await queue.take(failed=True)) == ("good", "bad")
    queue.done("bad")
    queue.wake("bad")
    assert await queue.take() == "bad"
