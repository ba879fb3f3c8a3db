"""Hedging: a stream whose first event is late is asked of a second replica too, and whichever begins first goes on."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

from quire_api.wire import IndexMode
from quire_gateway.cost import Pick
from quire_gateway.fleet import ReplicaState, Ticket
from quire_gateway.relay import End, Outcome, Relay

Result = tuple[Relay | None, Outcome]
"""Of asking a replica; no relay where there was no connection."""
Winner = Literal["first", "second", "neither"]


@dataclass(eq=False, slots=True)
class Attempt:
    """One replica that a request is sent to."""

    replica: ReplicaState
    ticket: Ticket
    pick: Pick
    miss: str
    number: int
    """Of the request's attempts, 1 for the first."""
    generation: int = field(init=False)
    index_mode: IndexMode = field(init=False)
    relay: Relay | None = None
    task: asyncio.Task[Result] | None = None
    """Where several are awaited at once."""

    def __post_init__(self) -> None:
        self.generation = self.replica.health.generation
        self.index_mode = self.replica.index_mode

    def give_up(self) -> None:
        """The replica stops working on it, and nothing that it still says is heard."""
        if self.relay is not None:
            self.relay.drop()
        if self.task is not None:
            self.task.cancel()
        self.ticket.release()

    def end(self) -> None:
        """It is over. Relay and task know it: in a circle they would wait for Python's collector."""
        self.ticket.release()
        self.relay = self.task = None


async def race(
    first: Attempt,
    ask: Callable[[Attempt], Coroutine[Any, Any, Result]],
    find_second: Callable[[], Attempt | None],
    begun: asyncio.Future[None],
    after_s: float,
    on_failed: Callable[[Attempt, Result], None],
) -> tuple[Attempt, Result, Winner | None]:
    """The attempt that decides, and what came of it; the winner is None where nothing was hedged.

    begun: done once the client has seen a byte; whoever makes it so gives the other one up. on_failed: hears of an
    attempt that failed while the other one goes on.
    """
    running = [first]
    first.task = asyncio.create_task(ask(first))
    second: Attempt | None = None
    try:
        awaited: list[asyncio.Future[Any]] = [first.task, begun]
        await asyncio.wait(awaited, timeout=after_s, return_when=asyncio.FIRST_COMPLETED)
        if not (first.task.done() or begun.done()):
            second = find_second()
        if second is None:
            return first, await first.task, None
        second.task = asyncio.create_task(ask(second))
        running.append(second)
        while True:
            await asyncio.wait([_task(each) for each in running], return_when=asyncio.FIRST_COMPLETED)
            for attempt in [each for each in running if _task(each).done()]:
                if _task(attempt).cancelled():
                    running.remove(attempt)
                    continue
                result = _task(attempt).result()
                has_failed = result[1].end in (End.FAILED, End.TURNED_AWAY)
                if not has_failed or len(running) == 1:
                    winner: Winner = "neither" if has_failed else "first" if attempt is first else "second"
                    return attempt, result, winner
                running.remove(attempt)
                on_failed(attempt, result)
    finally:
        for each in (first, second):
            if each is not None and each.task is not None and not each.task.done():
                each.give_up()
        if second is not None:
            second.end()


def _task(attempt: Attempt) -> asyncio.Task[Result]:
    assert attempt.task is not None
    return attempt.task
