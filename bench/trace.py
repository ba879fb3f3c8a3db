"""Where the time of a decode step goes on this GPU: its kernels, the gaps between them, and the host beside them.

    python bench/trace.py --model m-small [--batches 1,256,1024] [--out FILE --run ID] [--option name=value]

Sequences of 512 prompt tokens decode in lockstep, dummy weights. Wall and host times are read without the profiler.
`host_ms` is Python between two steps: planning, launching and reading, without waiting for the device.
"""

import argparse
import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu import CONFIGS, options_of, origin, write_config

from quire import LLM, SamplingParams

PROMPT, STEPS, TRACED = 512, 60, 6
SHOWN = 16


class Stopwatch:
    """Seconds spent in wrapped calls, by name, one entry a call."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def wrap(self, owner: Any, method: str) -> None:
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[method].append(time.perf_counter() - started)

        setattr(owner, method, timed)


def start(llm: LLM, batch: int, seed: int) -> None:
    """Add the requests and step until all of them decode."""
    rng, engine = random.Random(seed), llm.engine
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=4 * STEPS)
    for handle in range(batch):
        engine.add(1_000_000 * seed + handle, [rng.randrange(10_000) for _ in range(PROMPT)], params)
    seen: set[int] = set()
    while len(seen) < batch:
        outputs = engine.step()
        assert outputs is not None
        seen.update(outputs.handles.tolist())
    for _ in range(8):
        engine.step()


def finish(llm: LLM, batch: int, seed: int) -> None:
    for handle in range(batch):
        llm.engine.abort(1_000_000 * seed + handle)
    while llm.engine.has_work:
        llm.engine.step()


def kernels_of(profile: Any, steps: int) -> dict[str, Any]:
    """Microseconds and launches a step by kernel, and what is between them."""
    events = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    times: dict[str, list[float]] = defaultdict(list)
    busy = gaps = 0.0
    last = events[0][0]
    for begin, end, name in events:
        times[name].append(end - begin)
        busy += max(end - max(begin, last), 0)
        gaps += max(begin - last, 0)
        last = max(last, end)
    rows = sorted(((sum(ts) / steps, len(ts) / steps, name) for name, ts in times.items()), reverse=True)
    return {
        "busy_us": round(busy / steps, 1),
        "gaps_us": round(gaps / steps, 1),
        "kernels": [{"us": round(us, 1), "count": round(n, 1), "name": name[:90]} for us, n, name in rows],
    }


def trace(llm: LLM, batch: int, watch: Stopwatch) -> dict[str, Any]:
    for seed in (2 * batch + 1, 2 * batch + 2):
        start(llm, batch, seed)
        if seed % 2:
            finish(llm, batch, seed)
    watch.seconds.clear()
    walls = []
    for _ in range(STEPS):
        started = time.perf_counter()
        llm.engine.step()
        walls.append(time.perf_counter() - started)
    waits = watch.seconds["wait"]
    hosts = sorted(1e3 * (wall - wait) for wall, wait in zip(walls, waits, strict=True))
    found = {
        "batch": batch,
        "step_ms": round(1e3 * statistics.median(walls), 4),
        "host_p50_ms": round(hosts[len(hosts) // 2], 4),
        "host_p99_ms": round(hosts[int(0.99 * len(hosts))], 4),
        **{f"{name}_ms": round(1e3 * statistics.median(watch.seconds[name]), 4) for name in ("plan", "launch", "wait")},
    }
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(TRACED):
            llm.engine.step()
        torch.cuda.synchronize()
    finish(llm, batch, 2 * batch + 2)
    return {**found, **kernels_of(profile, TRACED)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of a decode step goes.")
    parser.add_argument("--model", choices=list(CONFIGS), required=True)
    parser.add_argument("--batches", default="1,256,1024")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--run", default="", help="one id for everything measured on one machine in one go")
    parser.add_argument("--models", type=Path, default=Path("/tmp/quire-bench-models"), help="where configs are put")
    parser.add_argument("--option", action="append", default=[], help="name=value for the engine")
    options = parser.parse_args()
    directory = write_config(options.model, options.models)
    batches = [int(batch) for batch in options.batches.split(",")]
    settings = {"dtype": "bfloat16", "max_model_len": 4096, "load_format": "dummy", "gpu_memory_utilization": 0.85}
    settings["max_num_seqs"] = max(256, *batches)
    llm = LLM(model=str(directory), skip_tokenizer_init=True, **{**settings, **options_of(options.option)})
    print("start", {name: round(value, 2) for name, value in llm.engine.loaded.startup_s.items()}, flush=True)
    watch = Stopwatch()
    watch.wrap(llm.engine._scheduler, "plan")
    watch.wrap(llm.engine._runner, "launch")
    from quire_runtime.execute.output import PendingStep

    watch.wrap(PendingStep, "wait")
    for batch in batches:
        found = {**origin(options.run), "model": options.model, **trace(llm, batch, watch)}
        print(" ".join(f"{key} {value}" for key, value in found.items() if key != "kernels"), flush=True)
        for row in found["kernels"][:SHOWN]:
            print(f"  {row['us']:9.1f} us  {row['count']:6.1f} x  {row['name']}", flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
