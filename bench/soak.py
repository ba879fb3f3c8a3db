"""Random requests on one engine for minutes: it must stay right, however they come, end and collide.

    python bench/soak.py --model m-small --seconds 480 [--option name=value]      # a GPU
    python bench/soak.py --directory models/quire-tiny --seconds 20 --option max_model_len=512

Prompts of all lengths, some of which begin alike, several choices, sampled and greedy, with stops and priorities; one
in five is cancelled; the KV cache is small enough for preemptions. Each 1,000 steps, and at the end, the books must
balance: every block is free, cached or held, held blocks are those of the running sequences, and every answer had its
length. All requests are finished: none is added once those in flight take what is left of --seconds at the pace so far,
and none is longer. A greedy request before and after all of it, each alone, must have the same tokens. Exit code 1
otherwise.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from gpu import CONFIGS, options_of, write_config

from quire import LLM, SamplingParams
from quire_runtime.scheduler.request import FinishReason

EVERY = 1000
MOST_ALIVE = 300


class Soak:
    """Requests in flight, and what came of them."""

    def __init__(self, llm: LLM, seed: int) -> None:
        self.engine = llm.engine
        self.rng = random.Random(seed)
        self.longest = self.engine.max_model_len - 1
        self.vocab = self.engine.vocab_size
        self.prefixes = [self._ids(n) for n in (16, 64, 200, self.longest // 3)]
        self.params: dict[int, SamplingParams] = {}
        self.running: dict[int, set[int]] = {}
        self.counts: dict[tuple[int, int], int] = {}
        self.handle = self.steps = self.finished = self.cancelled = self.tokens = self.checks = 0

    def _ids(self, count: int) -> list[int]:
        return [self.rng.randrange(self.vocab) for _ in range(count)]

    def add(self, most_tokens: int) -> None:
        """A request of at most so many tokens."""
        rng = self.rng
        prompt = rng.choice(self.prefixes)[: rng.randrange(1, 4000)] if rng.random() < 0.4 else []
        prompt = prompt + self._ids(rng.choice([1, 5, 17, rng.randrange(1, 200), rng.randrange(1, self.longest // 2)]))
        count = rng.randrange(1, min(400, self.longest - len(prompt), max(most_tokens, 2)))
        is_greedy = rng.random() < 0.5
        self.handle += 1
        self.params[self.handle] = params = SamplingParams(
            n=1 if is_greedy else rng.choice([1, 1, 2, 3]),
            temperature=0.0 if is_greedy else rng.choice([0.3, 1.0]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 0, 20]),
            max_tokens=count,
            ignore_eos=True,
            logprobs=rng.choice([None, None, None, 2]),
            stop_token_ids=rng.choice([[], self._ids(3)]),
        )
        self.running[self.handle] = set(range(params.n))
        self.engine.add(self.handle, prompt, params, priority=rng.choice([0, 0, 0, 1]))

    def cancel(self) -> None:
        handle = self.rng.choice(list(self.running))
        self.engine.abort(handle)
        self.cancelled += 1
        del self.running[handle]

    def owed(self) -> int:
        """Tokens that the longest request in flight may still bring, at one a step."""
        return max(
            (
                (self.params[handle].max_tokens or 0) - self.counts.get((handle, choice), 0)
                for handle, choices in self.running.items()
                for choice in choices
            ),
            default=0,
        )

    def step(self) -> None:
        outputs = self.engine.step()
        self.steps += 1
        if outputs is None:
            return
        for handle, choice, token, finish in zip(
            outputs.handles.tolist(),
            outputs.choices.tolist(),
            outputs.tokens.tolist(),
            outputs.finish.tolist(),
            strict=True,
        ):
            expect(handle in self.running and choice in self.running[handle], f"{handle}.{choice} is nobody's")
            place = handle, choice
            self.counts[place] = self.counts.get(place, 0) + (token >= 0)
            self.tokens += token >= 0
            if finish:
                params, made = self.params[handle], self.counts.pop(place)
                expect(finish != FinishReason.ERROR, f"{handle} failed")
                if finish == FinishReason.LENGTH:
                    expect(made == params.max_tokens, f"{handle}: {made} of {params.max_tokens} tokens")
                else:
                    expect(token in params.stop_token_ids, f"{handle} stopped at {token}")
                self.running[handle].discard(choice)
                if not self.running[handle]:
                    del self.running[handle]
                    self.finished += 1

    def check(self) -> None:
        """The scheduler's books."""
        self.checks += 1
        scheduler = self.engine._scheduler
        pool, rows, tables = scheduler._tables.pool, scheduler._rows, scheduler._tables
        expect(pool.num_free + pool.num_cached + pool.num_held == pool.num_blocks - 1, "blocks were lost")
        expect(int((pool.ref_counts > 0).sum()) == pool.num_held, "held blocks and counts differ")
        held = np.concatenate([np.empty(0, np.int32), *(tables.table[row, : tables.held[row]] for row in rows.order)])
        counted = np.bincount(held, minlength=pool.num_blocks)
        expect(bool((counted == pool.ref_counts).all()), "counts are not those of the running sequences")
        expect(len(self.running) >= len(scheduler._families), "the scheduler serves requests that have ended")


def expect(is_so: bool, problem: str) -> None:
    if not is_so:
        raise SystemExit(f"soak: {problem}")


def alone(llm: LLM, prompt: list[int]) -> list[int]:
    llm.reset_prefix_cache()
    params = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
    return list(llm.generate([{"prompt_token_ids": prompt}], [params], use_tqdm=False)[0].outputs[0].token_ids)


def main() -> int:
    parser = argparse.ArgumentParser(description="Random requests for minutes.")
    parser.add_argument("--model", choices=list(CONFIGS), default="m-small")
    parser.add_argument("--directory", type=Path, help="a model instead, with its weights")
    parser.add_argument("--seconds", type=float, default=480, help="until all requests are finished")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, default=Path("/tmp/quire-bench-models"), help="where configs are put")
    parser.add_argument("--option", action="append", default=[], help="name=value for the engine")
    options = parser.parse_args()
    settings: dict[str, Any] = {"max_model_len": 4096, "num_gpu_blocks_override": 2500, "mixed_step_tokens": 512}
    if options.directory is None:
        settings |= {"dtype": "bfloat16", "load_format": "dummy"}
    directory = options.directory or write_config(options.model, options.models)
    llm = LLM(model=str(directory), skip_tokenizer_init=True, **{**settings, **options_of(options.option)})
    prompt = [random.Random(7).randrange(llm.engine.vocab_size) for _ in range(100)]
    # The first run of a shape is eager, the second one a graph.
    before = [alone(llm, prompt) for _ in range(3)][-1]
    soak = Soak(llm, options.seed)
    started = time.monotonic()
    while True:
        passed = time.monotonic() - started
        left = options.seconds - passed
        steps_left = int(left * soak.steps / passed) if soak.steps else int(left)
        if steps_left <= soak.owed():
            break
        if len(soak.running) < MOST_ALIVE * (0.2 + 0.8 * (soak.steps // 500 % 2)) and soak.rng.random() < 0.5:
            soak.add(steps_left)
            if soak.rng.random() < 0.2:
                soak.cancel()
        elif soak.engine.has_work:
            soak.step()
            if soak.steps % EVERY == 0:
                soak.check()
                print(f"{soak.steps} steps, {soak.finished} done, {left:.0f} s left", file=sys.stderr, flush=True)
    while soak.engine.has_work:
        soak.step()
    soak.check()
    expect(not soak.running, f"{len(soak.running)} requests never ended")
    expect(soak.engine.stats.kv_blocks_used == 0, "blocks are held by nobody")
    expect(alone(llm, prompt) == before, "a request's tokens changed")
    stats = soak.engine.stats
    found = {name: getattr(soak, name) for name in ("steps", "tokens", "finished", "cancelled", "checks")}
    print(json.dumps({**found, "preemptions": stats.num_preemptions, "seconds": options.seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
