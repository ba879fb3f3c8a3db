"""What reaches the reader of a request's stream."""

import asyncio

from quire_runtime.engine.errors import EngineDied
from quire_runtime.engine.stream import ChoiceDelta, Stream


async def test_whoever_comes_after_the_end_is_told_nothing():
    stream = Stream(1, lambda _: None)
    stream.add(ChoiceDelta(0, [5]))
    stream.close()
    told = []
    stream.call_on_news(lambda: told.append("news"))
    stream.fail(EngineDied("killed"))
    await asyncio.sleep(0)
    assert told == []
