"""The real scheduler on a fake clock: what a workload would feel on a device of known step times."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quire_api.sampling import SamplingParams
from quire_runtime.scheduler.config import SchedulerConfig
from quire_runtime.scheduler.plan import StepPlan
from quire_runtime.scheduler.request import Request
from quire_runtime.scheduler.scheduler import Scheduler, SchedulerStats

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StepCost:
    """Milliseconds of one step on the device: a line through recorded steps.

    base_ms for any step, and so much for each query token, each sequence, and each 1,000 tokens of context read.
    """

    base_ms: float
    per_token_ms: float = 0.0
    per_sequence_ms: float = 0.0
    per_1k_context_ms: float = 0.0

    def step_s(self, plan: StepPlan) -> float:
        ms = self.base_ms + self.per_token_ms * int(plan.query_lens.sum()) + self.per_sequence_ms * len(plan.rows)
        return (ms + self.per_1k_context_ms * int(plan.context_lens.sum()) / 1000) / 1000


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request of exactly `output_len` tokens that comes at `at_s`."""

    token_ids: list[int]
    output_len: int
    at_s: float = 0.0
    priority: int = 0


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """Seconds on the fake clock.

    ttft_s [requests]: arrival to first token, in the order of the workload.
    token_s: per request the moments of its tokens.
    peak_waste_ratio: the largest kv_waste_ratio after any plan.
    """

    ttft_s: Seconds
    token_s: list[Seconds]
    duration_s: float
    num_steps: int
    peak_waste_ratio: float
    stats: SchedulerStats

    @property
    def itl_s(self) -> Seconds:
        """Gaps between consecutive tokens, all requests in one array."""
        return np.concatenate([np.diff(moments) for moments in self.token_s])

    @property
    def output_tokens_per_s(self) -> float:
        return sum(len(moments) for moments in self.token_s) / self.duration_s


def simulate(
    config: SchedulerConfig, workload: Sequence[Arrival], cost: StepCost, depth: int = 2, host_s: float = 0.0
) -> SimulatedRun:
    """Serve `workload`, planning up to `depth` steps ahead of the tokens read.

    The device carries out one step after another; a step begins `host_s` after it is planned at the earliest.

    Raises:
        UserError: the scheduler refuses a request.
    """
    scheduler = Scheduler(config, "simulated")
    coming = deque(sorted(range(len(workload)), key=lambda i: workload[i].at_s))
    flights: deque[tuple[StepPlan, float]] = deque()
    moments: list[list[float]] = [[] for _ in workload]
    now = device_free_s = peak_waste = 0.0
    num_steps = 0
    while coming or scheduler.has_work:
        while coming and workload[coming[0]].at_s <= now:
            scheduler.add(_request(coming[0], workload[coming[0]]))
            coming.popleft()
        plan = scheduler.plan() if len(flights) < depth else None
        if plan is not None:
            device_free_s = max(now + host_s, device_free_s) + cost.step_s(plan)
            flights.append((plan, device_free_s))
            num_steps += 1
            peak_waste = max(peak_waste, scheduler.stats().kv_waste_ratio)
        elif flights:
            plan, end_s = flights.popleft()
            now = max(now, end_s)
            for handle in scheduler.update(plan, np.zeros(len(plan.rows), np.int32)).handles.tolist():
                moments[handle].append(now)
        else:
            now = workload[coming[0]].at_s
    return SimulatedRun(
        ttft_s=np.array([times[0] - arrival.at_s for times, arrival in zip(moments, workload, strict=True)]),
        token_s=[np.array(times) for times in moments],
        duration_s=now,
        num_steps=num_steps,
        peak_waste_ratio=peak_waste,
        stats=scheduler.stats(),
    )


def _request(handle: int, arrival: Arrival) -> Request:
    return Request(
        handle=handle,
        token_ids=arrival.token_ids,
        params=SamplingParams(max_tokens=arrival.output_len, ignore_eos=True),
        seed=handle,
        max_tokens=arrival.output_len,
        priority=arrival.priority,
    )
