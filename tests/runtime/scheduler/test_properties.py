"""Whatever is added, aborted, shared, forked and preempted: every query sees the right tokens, and nothing leaks."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quire_api.blocks import packed_block_key
from quire_api.kv_events import Cleared, Operation, Removed, Stored, split_keys

PREFIXES = [[1] * 30, [1] * 9 + [2] * 21, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4]]

prompts = st.builds(
    lambda prefix, length, tail: [*PREFIXES[prefix][:length], *tail],
    st.integers(0, len(PREFIXES) - 1),
    st.integers(0, 20),
    st.lists(st.integers(0, 3), min_size=1, max_size=9),
)
adds = st.fixed_dictionaries(
    {
        "prompt": prompts,
        "max_tokens": st.integers(1, 20),
        "priority": st.integers(-1, 1),
        "salt": st.sampled_from(["", "a"]),
        "n": st.sampled_from([1, 1, 1, 2, 4]),
        "stops": st.one_of(st.just([]), st.sampled_from([[3], list(range(3, 20))])),
        "min_tokens": st.sampled_from([0, 0, 1]),
        "prompt_logprobs": st.sampled_from([None, None, 1]),
    }
)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("add"), adds),
        st.tuples(st.just("follow up"), st.integers(0, 9)),
        st.tuples(st.just("steps"), st.integers(1, 6)),
        st.tuples(st.just("launch"), st.just(0)),
        st.tuples(st.just("abort"), st.integers(0, 9)),
        st.tuples(st.just("abort choice"), st.integers(0, 9)),
        st.tuples(st.just("forget prefixes"), st.just(0)),
    ),
    min_size=1,
    max_size=25,
)
configs = st.fixed_dictionaries(
    {
        "depth": st.sampled_from([1, 2, 2, 3]),
        "max_num_seqs": st.sampled_from([1, 3, 6]),
        "max_num_batched_tokens": st.sampled_from([1, 5, 16, 64]),
        "block_size": st.sampled_from([1, 4]),
        "spare_blocks": st.integers(0, 20),
        "enable_prefix_caching": st.booleans(),
        "long_prefill_token_threshold": st.sampled_from([0, 0, 3]),
    }
)


def weak_key(parent: bytes, packed: bytes) -> bytes:
    return bytes([packed_block_key(parent, packed)[0] & 3])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs, script=actions, keys_collide=st.booleans())
def test_every_query_sees_exactly_its_own_tokens(
    bench: Callable[..., Any], config: dict[str, Any], script: list[tuple[str, Any]], keys_collide: bool
) -> None:
    with mock.patch("quire_runtime.kv.prefix.packed_block_key", weak_key if keys_collide else packed_block_key):
        play(bench, dict(config), script, are_keys_whole=not keys_collide)


def play(
    bench: Callable[..., Any], config: dict[str, Any], script: list[tuple[str, Any]], are_keys_whole: bool
) -> None:
    spare = config.pop("spare_blocks")
    it = bench(**config, num_blocks=1 + -(-64 // config["block_size"]) + spare)
    it.kv_log.is_on = are_keys_whole
    told: set[bytes] = set()
    for name, argument in script:
        match name:
            case "add":
                it.add(**argument)
            case "follow up" if argument < len(it.requests):
                said = it.requests[argument].token_ids + it.outputs[argument, 0]
                it.add([*said[:40], *PREFIXES[argument % 3][:3]], max_tokens=9)
            case "steps":
                for _ in range(argument):
                    it.step()
            case "launch":
                if len(it.flights) < it.depth:
                    it.launch()
            case "abort":
                it.abort(argument)
            case "abort choice":
                it.abort(argument, 0)
            case "forget prefixes":
                it.scheduler.reset_prefix_cache()
        if are_keys_whole:
            apply(it.kv_log.take(), told)
            assert told == set(it.scheduler.prefix_keys()), "whoever follows the events knows the cache"
    it.run()
    it.check_answers()


def apply(operations: list[Operation], held: set[bytes]) -> None:
    for operation in operations:
        match operation:
            case Stored(keys=keys):
                new = split_keys(keys)
                assert held.isdisjoint(new)
                held.update(new)
            case Removed(keys=keys):
                gone = split_keys(keys)
                assert held.issuperset(gone)
                held.difference_update(gone)
            case Cleared():
                held.clear()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_long_mixed_run_with_little_memory(bench: Callable[..., Any], depth: int) -> None:
    it = bench(depth=depth, num_blocks=24, max_num_batched_tokens=24)
    for i in range(30):
        it.add([1] * (i % 13 + 1) + [i % 3] * (i % 7), max_tokens=i % 41 + 1, priority=i % 2, n=1 + i % 3)
    it.run()
    it.check_answers()
    assert it.scheduler.stats().num_preemptions > 0
