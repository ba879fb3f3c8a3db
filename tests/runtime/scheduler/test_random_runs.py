"""Long random runs with little memory: the states that short scripts do not reach."""

import random
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from quire_api.blocks import packed_block_key


@pytest.fixture(params=["keys", "colliding keys"])
def _keys(request: pytest.FixtureRequest) -> Iterator[None]:
    def weak(parent: bytes, packed: bytes) -> bytes:
        return bytes([packed_block_key(parent, packed)[0] & 7])

    with mock.patch(
        "quire_runtime.kv.prefix.packed_block_key", weak if request.param == "colliding keys" else packed_block_key
    ):
        yield


@pytest.mark.usefixtures("_keys")
@pytest.mark.parametrize("seed", range(10))
def test_a_long_random_run(bench: Callable[..., Any], seed: int) -> None:
    rng = random.Random(seed)
    block_size = rng.choice([1, 2, 3, 4, 8])
    it = bench(
        depth=rng.choice([1, 2, 2, 3]),
        block_size=block_size,
        num_blocks=1 + -(-64 // block_size) + rng.choice([0, 3, 10, 30]),
        max_num_seqs=rng.choice([2, 5, 12]),
        max_num_batched_tokens=rng.choice([2, 9, 40]),
        long_prefill_token_threshold=rng.choice([0, 5]),
        enable_prefix_caching=rng.random() < 0.8,
    )
    for _ in range(100):
        action = rng.random()
        if action < 0.3:
            add_any(it, rng)
        elif action < 0.36 and it.requests:
            it.abort(rng.choice(list(it.requests)), rng.choice([None, None, 0, 1]))
        elif action < 0.5 and len(it.flights) < it.depth:
            it.launch()
        else:
            for _ in range(rng.randint(1, 6)):
                it.step()
    it.run()
    it.check_answers()


def add_any(it: Any, rng: random.Random) -> None:
    """A new prompt, or one that goes on from any moment of an earlier conversation."""
    prompt = [1] * rng.randint(1, 20)
    if it.outputs and rng.random() < 0.4:
        handle, choice = rng.choice(list(it.outputs))
        prompt = (it.requests[handle].token_ids + it.outputs[handle, choice])[: rng.randint(1, 45)]
    it.add(
        prompt + [rng.randint(0, 3) for _ in range(rng.randint(0, 4))],
        max_tokens=rng.randint(1, 63),
        priority=rng.choice([0, 0, 0, 1]),
        n=rng.choice([1, 1, 1, 2, 5]),
        stops=rng.choice([[], [], [3]]),
        salt=rng.choice(["", "", "a"]),
    )
