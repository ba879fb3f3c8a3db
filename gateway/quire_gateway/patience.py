"""Waiting with a limit, in turns of the own loop: while the gateway stands still, nobody is slow to answer.

A timer that is due comes before what has arrived meanwhile: a process that gets no processor for two seconds would take
every replica that it was asking for lost.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

_TURN_S = 0.25

T = TypeVar("T")


async def within(seconds: float, awaited: Awaitable[T]) -> T:
    """What is `awaited`.

    Raises:
        TimeoutError: that took longer.
    """
    loop = asyncio.get_running_loop()
    future = asyncio.ensure_future(awaited)
    left = seconds
    try:
        while not future.done() and left > 0:
            turn, began = min(_TURN_S, left), loop.time()
            await asyncio.wait({future}, timeout=turn)
            left -= min(loop.time() - began, turn)
    except asyncio.CancelledError:
        future.cancel()
        raise
    if not future.done():
        future.cancel()
        raise TimeoutError
    return future.result()
