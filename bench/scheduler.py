"""Time of one decode step in the scheduler, plan + update, by number of running sequences.

It is a part of a step's Python, whose goals stand beside it; bench/trace.py reads the whole on a GPU.

    python bench/scheduler.py [--steps 400] [--depth 2] [--json]

All sequences decode; prompts have different lengths, so that in each step 1 in `block_size` of them takes a new block
and fills one for the prefix index. The device is no part of it: tokens are drawn at random beforehand.
"""

import argparse
import json
import random
import sys
from collections import deque
from time import perf_counter

import numpy as np

from quire_api.sampling import SamplingParams
from quire_runtime.scheduler.config import SchedulerConfig
from quire_runtime.scheduler.request import Request
from quire_runtime.scheduler.scheduler import Scheduler

BATCHES = (1, 256, 1024)
WHOLE_STEP_MS = {1: 0.25, 256: 0.5, 1024: 1.0}


def decode_ms(batch: int, steps: int, depth: int) -> list[float]:
    """Milliseconds of plan + update for each of `steps` steps in which `batch` sequences decode."""
    rng = random.Random(batch)
    config = SchedulerConfig(
        max_num_seqs=batch,
        max_num_batched_tokens=max(8192, batch),
        max_model_len=1024 + steps + 64,
        block_size=16,
        num_blocks=batch * (-(-(256 + steps + 64) // 16)) + 2,
    )
    scheduler = Scheduler(config, "bench")
    for handle in range(batch):
        prompt = [rng.randrange(100_000) for _ in range(rng.randrange(64, 256))]
        params = SamplingParams(max_tokens=steps + 64, temperature=0.0)
        scheduler.add(
            Request(handle, prompt, params, seed=0, max_tokens=steps + 64, stop_token_ids=frozenset({100_001, 100_002}))
        )
    tokens = np.random.default_rng(0).integers(0, 100_000, (steps, batch), dtype=np.int32)
    flights = deque()
    while len(flights) < depth or len(flights[0].rows) < batch or flights[0].admissions:
        flights.append(scheduler.plan())
        if len(flights) > depth:
            plan = flights.popleft()
            scheduler.update(plan, tokens[0, : len(plan.rows)])
    times = []
    for step in range(steps):
        start = perf_counter()
        flights.append(scheduler.plan())
        scheduler.update(flights.popleft(), tokens[step])
        times.append(1000 * (perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for batch in BATCHES:
        times = sorted(decode_ms(batch, arguments.steps, arguments.depth))
        row = {
            "sequences": batch,
            "p50_ms": round(times[len(times) // 2], 4),
            "p99_ms": round(times[int(len(times) * 0.99)], 4),
            "goal_of_whole_step_ms": WHOLE_STEP_MS[batch],
        }
        if arguments.json:
            json.dump(row, sys.stdout)
            print()
        else:
            print("  ".join(f"{name} {value:>7}" for name, value in row.items()))


if __name__ == "__main__":
    main()
