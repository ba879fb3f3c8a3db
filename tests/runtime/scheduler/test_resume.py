"""Requests that another engine began: whatever was put out there, what follows is what would have followed."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from quire_runtime.scheduler.errors import BadResume
from quire_runtime.scheduler.request import FinishReason


def take_over(there: Any, here: Any, cut: Callable[[int], int]) -> None:
    """Let `here` go on with all requests of `there`, of each choice with the first `cut(length)` tokens."""
    for handle, request in there.requests.items():
        outputs, ended = [], set()
        for choice in range(request.params.n):
            said = there.outputs[handle, choice]
            kept = cut(len(said))
            if kept == len(said) and there.finish.get((handle, choice)) in (FinishReason.STOP, FinishReason.LENGTH):
                ended.add(choice)
            outputs.append(said[:kept])
        here.requests[handle] = request
        for choice, kept_tokens in enumerate(outputs):
            here.outputs[handle, choice] = list(kept_tokens)
            here.finish.pop((handle, choice), None)
            if choice in ended:
                here.finish[handle, choice] = there.finish[handle, choice]
        if len(ended) < request.params.n:
            here.scheduler.add(replace(request, outputs=tuple(outputs), ended=frozenset(ended)))


@pytest.mark.parametrize("seed", range(12))
def test_a_run_that_is_broken_off_anywhere_is_finished_elsewhere(bench, seed):
    rng = random.Random(seed)
    shape: dict[str, Any] = {
        "depth": rng.choice([1, 2]),
        "block_size": rng.choice([1, 3, 4, 8]),
        "max_num_seqs": rng.choice([2, 5, 12]),
        "max_num_batched_tokens": rng.choice([3, 9, 40]),
        "enable_prefix_caching": rng.random() < 0.8,
    }
    shape["num_blocks"] = 1 + -(-64 // shape["block_size"]) + rng.choice([0, 3, 10, 30])
    there, here = bench(**shape), bench(**shape)
    for _ in range(12):
        there.add(
            [1] * rng.randint(1, 20) + [rng.randint(0, 3) for _ in range(3)],
            max_tokens=rng.randint(1, 40),
            n=rng.choice([1, 1, 2, 5]),
            stops=rng.choice([[], [3]]),
            min_tokens=rng.choice([0, 1]),
        )
    for _ in range(rng.randint(1, 60)):
        there.step()
    take_over(there, here, lambda length: rng.choice([length, length, rng.randint(0, length)]))
    here.run()
    here.check_answers()


def test_a_full_queue_does_not_refuse_it(bench):
    there, here = bench(), bench(max_num_queued_reqs=0)
    there.add([1, 2, 3], max_tokens=8)
    for _ in range(3):
        there.step()
    take_over(there, here, lambda length: length)
    here.run()
    here.check_answers()


@pytest.mark.parametrize(
    ("outputs", "ended"), [(([1],), set()), (([1], [2]), {0, 1}), (([1] * 8, [2]), set()), (([1], [2], [3]), set())]
)
def test_what_does_not_fit_the_request_is_refused(bench, outputs, ended):
    there = bench()
    there.add([1, 2], max_tokens=8, n=2)
    here = bench()
    with pytest.raises(BadResume):
        here.scheduler.add(replace(there.requests[0], outputs=outputs, ended=frozenset(ended)))
    here.check_idle()


def test_cached_tokens_are_those_of_the_prompt_alone(bench):
    here = bench()
    there = bench()
    there.add([1] * 8, max_tokens=20)
    there.run()
    take_over(there, here, lambda length: length - 1)
    here.run()
    take_over(there, here, lambda length: length - 1)
    outputs = here.reap() if here.launch() is not None else None
    assert outputs is not None
    assert outputs.cached.tolist() == [8]
