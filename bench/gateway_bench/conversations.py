"""Clients that hold conversations with a simulated fleet: a turn comes a while after the answer to the one before."""

import copy
from collections.abc import Callable, Sequence

from gateway_bench.engine import Job
from gateway_bench.fleet import SimulatedFleet
from gateway_bench.traffic import Script
from gateway_bench.virtual import VirtualLoop


class Conversations:
    """sent: the requests so far. over: done once every conversation has ended.

    A conversation that would go on at `end_s` or later is cut, so that all that are compared see the same window.

    on_sent: told of each request once the fleet has it.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        fleet: SimulatedFleet,
        scripts: Sequence[Script],
        end_s: float,
        on_sent: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self.sent: list[Job] = []
        self.over = loop.create_future()
        self._loop, self._fleet, self._end_s, self._on_sent = loop, fleet, end_s, on_sent
        self._left = len(scripts)
        for script in scripts:
            loop.call_at(script.at_s, self._send, script, 0)

    def _send(self, script: Script, number: int) -> None:
        job = copy.copy(script.turns[number].job)
        self.sent.append(job)
        self._fleet.send(job, lambda: self._follow(script, number + 1))
        self._on_sent(job)

    def _follow(self, script: Script, number: int) -> None:
        if number < len(script.turns) and self._loop.time() + script.turns[number].gap_s < self._end_s:
            self._loop.call_later(script.turns[number].gap_s, self._send, script, number)
            return
        self._left -= 1
        if not self._left:
            self.over.set_result(None)
