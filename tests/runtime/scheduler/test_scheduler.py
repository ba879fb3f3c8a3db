"""What a caller of the scheduler can rely on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from quire_runtime.scheduler.errors import Draining, EmptyPrompt, KVTooSmall, PromptTooLong, QueueFull
from quire_runtime.scheduler.request import FinishReason

Benches = Callable[..., Any]


def batch(plan: Any) -> list[tuple[int, int]]:
    """(context, query) of each slot."""
    return list(zip(plan.context_lens.tolist(), plan.query_lens.tolist(), strict=True))


def test_a_prompt_is_computed_then_each_token_by_itself(bench: Benches) -> None:
    it = bench()
    it.add([5, 6, 7, 8, 9], max_tokens=3)
    it.run()
    assert [batch(plan) for plan in it.plans] == [[(0, 5)], [(5, 1)], [(6, 1)]]
    it.check_answers()


def test_decodes_go_first_and_prompts_take_what_is_left(bench: Benches) -> None:
    it = bench(max_num_batched_tokens=10)
    it.add([1] * 4, max_tokens=9)
    it.step()
    it.add([2] * 25, max_tokens=2)
    for _ in range(3):
        it.step()
    assert [batch(plan) for plan in it.plans[1:]] == [[(4, 1), (0, 9)], [(5, 1), (9, 9)], [(6, 1), (18, 7)]]
    assert [plan.samples.tolist() for plan in it.plans[1:]] == [[True, False], [True, False], [True, True]]


def test_no_sequence_gets_more_than_the_threshold_in_one_step(bench: Benches) -> None:
    it = bench(long_prefill_token_threshold=6)
    it.add([1] * 15, max_tokens=1)
    it.add([2] * 3, max_tokens=1)
    it.run()
    assert [batch(plan) for plan in it.plans] == [[(0, 6), (0, 3)], [(6, 6)], [(12, 3)]]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_length_limited_sequences_never_run_a_wasted_step(bench: Benches, depth: int) -> None:
    it = bench(depth=depth)
    for length in (1, 4, 9):
        it.add([length] * 4, max_tokens=length)
    it.run()
    assert it.device.computed_tokens == sum(4 + length - 1 for length in (1, 4, 9))
    it.check_answers()


@pytest.mark.parametrize(("depth", "steps"), [(1, 1), (2, 2)])
def test_a_stop_token_wastes_at_most_the_steps_in_flight(bench: Benches, depth: int, steps: int) -> None:
    it = bench(depth=depth)
    handle = it.add([1, 2, 3], max_tokens=30, stops=range(4))
    it.run()
    assert it.finish[handle, 0] == FinishReason.STOP
    assert len(it.outputs[handle, 0]) == 1
    assert len(it.plans) == steps


@pytest.mark.parametrize("num_stops", [1, 8, 20])
def test_stop_tokens_do_not_end_a_text_before_min_tokens(bench: Benches, num_stops: int) -> None:
    it = bench(depth=2)
    handle = it.add([1, 2, 3], max_tokens=40, stops=range(4, 3 + num_stops), min_tokens=5)
    stopping = it.add([1, 2, 3], max_tokens=40, stops=range(num_stops + 3), min_tokens=5)
    it.run()
    assert (len(it.outputs[handle, 0]), it.finish[handle, 0]) == (40, FinishReason.LENGTH)
    assert (len(it.outputs[stopping, 0]), it.finish[stopping, 0]) == (6, FinishReason.STOP)
    it.check_answers()


def test_the_window_ends_an_answer(bench: Benches) -> None:
    it = bench(max_model_len=10)
    handle = it.add([1] * 7, max_tokens=50)
    it.run()
    assert (len(it.outputs[handle, 0]), it.finish[handle, 0]) == (3, FinishReason.LENGTH)


def test_a_cached_prefix_is_not_computed_again_and_is_reported(bench: Benches) -> None:
    it = bench()
    it.add([1] * 10, max_tokens=1)
    it.run()
    handle = it.add([1] * 10, max_tokens=3)
    it.step()
    assert batch(it.plans[-1]) == [(8, 2)]
    assert it.scheduler.cached_tokens(handle) == 8
    it.launch()
    assert it.reap().cached.tolist() == [8]
    stats = it.scheduler.stats()
    assert (stats.prefix_queries_tokens, stats.prefix_hits_tokens) == (20, 8)


def test_the_answer_of_a_turn_is_cached_for_the_next(bench: Benches) -> None:
    it = bench(depth=2)
    first = it.add([1, 2, 3, 1, 2], max_tokens=12)
    it.run()
    again = it.add([1, 2, 3, 1, 2, *it.outputs[first, 0], 3], max_tokens=1)
    it.step()
    # 5 + 12 tokens, of which the last was never computed: 4 full blocks of 4
    assert it.scheduler.cached_tokens(again) == 16


def test_twins_in_one_step_share_their_prefix(bench: Benches) -> None:
    it = bench()
    it.add([1] * 10, max_tokens=2)
    it.add([1] * 10, max_tokens=2)
    it.launch()
    assert sorted(batch(it.plans[0])) == [(0, 10), (8, 2)]
    assert it.scheduler.stats().kv_blocks_used == 4
    it.reap()
    it.run()
    it.check_answers()


@pytest.mark.parametrize("difference", [{"salt": "other"}, {"prompt_logprobs": 0}])
def test_who_must_not_or_cannot_use_the_cache_computes_everything(bench: Benches, difference: dict[str, Any]) -> None:
    it = bench()
    it.add([1] * 10, max_tokens=1)
    it.run()
    handle = it.add([1] * 10, max_tokens=1, **difference)
    it.launch()
    assert batch(it.plans[-1]) == [(0, 10)]
    assert it.scheduler.cached_tokens(handle) == 0
    it.reap()
    it.check_idle()


def test_without_caching_nothing_is_found(bench: Benches) -> None:
    it = bench(enable_prefix_caching=False)
    for _ in range(2):
        it.add([1] * 10, max_tokens=1)
        it.run()
    assert [batch(plan) for plan in it.plans] == [[(0, 10)], [(0, 10)]]


@pytest.mark.parametrize("block_size", [3, 4, 5])
@pytest.mark.parametrize("depth", [1, 2])
def test_choices_share_the_prompt_and_draw_for_themselves(bench: Benches, depth: int, block_size: int) -> None:
    it = bench(depth=depth, block_size=block_size)
    handle = it.add([1, 2, 3, 1, 2, 3, 1, 2, 3, 1], max_tokens=8, n=4)
    it.step()
    it.launch()
    assert sorted(batch(it.plans[1])) == [(9, 1), (9, 1), (9, 1), (10, 1)]
    copies = it.plans[1].copy_targets
    assert len(copies) == (3 if 9 % block_size else 0)
    # 10 tokens: the full blocks are common, the last one is everybody's own
    assert it.scheduler.stats().kv_blocks_used <= 9 // block_size + 4 * 2
    it.run()
    it.check_answers()
    assert len({tuple(it.outputs[handle, choice]) for choice in range(4)}) == 4
    assert it.device.computed_tokens == 10 + 3 + 4 * 7


def test_choices_wait_for_rows_and_count_once_in_the_queue(bench: Benches) -> None:
    it = bench(max_num_seqs=2, max_num_queued_reqs=1)
    it.add([1] * 5, max_tokens=6, n=5)
    with pytest.raises(QueueFull):
        it.scheduler.add(it.requests[0].__class__(9, [1], it.requests[0].params, 0, 1))
    it.step()
    it.add([2] * 5, max_tokens=2)
    it.run()
    it.check_answers()


def test_a_choice_whose_siblings_are_gone_computes_its_prompt_itself(bench: Benches) -> None:
    it = bench(max_num_seqs=1)
    it.add([1] * 5, max_tokens=1, n=3)
    it.run()
    it.check_answers()


def test_a_choice_does_not_fork_from_one_whose_prompt_is_computed_in_the_same_step(bench: Benches) -> None:
    """An urgent request evicts two choices, prompt and all; they come back with the third, which never ran."""
    it = bench(depth=2, max_num_seqs=3, num_blocks=13)
    it.add([1] * 8, max_tokens=40, priority=-1)
    handle = it.add([2] * 8, max_tokens=30, n=3)
    it.run()
    together = [plan for plan in it.plans if len(plan.admissions) == 3]
    assert [admission.request.handle for admission in together[0].admissions] == [handle] * 3
    it.check_answers()


def test_running_out_of_blocks_preempts_the_latest_and_its_answer_stays_the_same(bench: Benches) -> None:
    it = bench(depth=2, num_blocks=13)
    first, second = it.add([1] * 8, max_tokens=32), it.add([2] * 8, max_tokens=32)
    it.run()
    assert it.scheduler.stats().num_preemptions >= 1
    resumed = [admission for plan in it.plans for admission in plan.admissions][2:]
    assert {admission.request.handle for admission in resumed} == {second}
    assert all(admission.num_prompt_tokens == 8 < len(admission.token_ids) for admission in resumed)
    assert it.finish == {(first, 0): FinishReason.LENGTH, (second, 0): FinishReason.LENGTH}
    it.check_answers()


def test_the_least_urgent_is_preempted_though_it_came_first(bench: Benches) -> None:
    it = bench(num_blocks=13)
    it.add([1] * 8, max_tokens=32, priority=5)
    it.add([2] * 8, max_tokens=32, priority=0)
    it.run()
    admitted = [admission.request.handle for plan in it.plans for admission in plan.admissions]
    assert admitted.count(0) > 1
    assert admitted.count(1) == 1
    it.check_answers()


def test_urgent_requests_overtake_in_the_queue(bench: Benches) -> None:
    it = bench(max_num_seqs=1)
    for priority in (0, 3, -(10**12), 3, -(10**12)):
        it.add([1] * 3, max_tokens=2, priority=priority)
    it.run()
    assert [admission.request.handle for plan in it.plans for admission in plan.admissions] == [2, 4, 0, 1, 3]


def test_a_waiting_sequence_leaves_room_for_those_who_run(bench: Benches) -> None:
    it = bench(num_blocks=9)
    it.add([1] * 16, max_tokens=8)
    it.add([2] * 16, max_tokens=8)
    it.step()
    # 4 blocks each would fill all 8, and the first token of either would need a ninth
    assert it.scheduler.stats().num_running == 1
    it.run()
    assert it.scheduler.stats().num_preemptions == 0
    it.check_answers()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("moment", ["waiting", "planned", "read", "preempted"])
def test_an_abort_releases_everything_at_any_moment(bench: Benches, depth: int, moment: str) -> None:
    it = bench(depth=depth, num_blocks=13)
    other = it.add([1] * 8, max_tokens=32)
    handle = it.add([2] * 8, max_tokens=32, n=2)
    match moment:
        case "planned":
            it.launch()
        case "read":
            for _ in range(4):
                it.step()
        case "preempted":
            while not it.scheduler.stats().num_preemptions:
                it.step()
    assert it.abort(handle) == [0, 1]
    assert it.abort(handle) == []
    it.run()
    assert it.finish[other, 0] == FinishReason.LENGTH
    it.check_answers()


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("choice", [0, 2])
def test_one_choice_can_be_aborted_alone(bench: Benches, started: bool, choice: int) -> None:
    it = bench()
    handle = it.add([1] * 6, max_tokens=5, n=3)
    for _ in range(3 * started):
        it.step()
    assert it.abort(handle, choice) == [choice]
    it.run()
    it.check_answers()
    assert sorted(it.finish.values()) == [FinishReason.LENGTH, FinishReason.LENGTH, FinishReason.ABORT]


def test_aborting_the_last_step_leaves_it_to_be_read(bench: Benches) -> None:
    it = bench()
    handle = it.add([1, 2], max_tokens=3)
    it.launch()
    it.abort(handle)
    assert it.scheduler.has_work
    assert len(it.reap().handles) == 0
    it.check_idle()


def test_a_failed_row_ends_alone(bench: Benches) -> None:
    it = bench()
    good, bad = it.add([1] * 5, max_tokens=4), it.add([2] * 5, max_tokens=4)
    plan = it.launch()
    _, tokens = it.flights.pop()
    outputs = it.scheduler.update(plan, np.where(np.arange(2) == 1, -1, tokens).astype(np.int32))
    assert outputs.handles.tolist() == [good, bad]
    assert outputs.tokens.tolist() == [tokens[0], -1]
    assert outputs.finish.tolist() == [FinishReason.NONE, FinishReason.ERROR]
    it.outputs[good, 0].append(int(tokens[0]))
    it.run()
    assert it.outputs[good, 0] == it.expected(good)[0]


def test_updates_come_in_the_order_of_plans(bench: Benches) -> None:
    it = bench()
    it.add([1, 2], max_tokens=5)
    it.launch()
    second = it.launch()
    with pytest.raises(ValueError, match="order of the plans"):
        it.scheduler.update(second, np.zeros(1, np.int32))


def test_a_block_is_never_registered_with_a_token_not_read_yet(bench: Benches) -> None:
    """At depth 2 the last token of a block is computed before its value is known; all values are tried as a prompt."""
    it = bench(depth=2)
    it.add([1, 2, 3], max_tokens=20)
    it.launch()
    it.launch()
    for guess in range(4):
        it.add([1, 2, 3, guess, 1, 1], max_tokens=2)
    it.launch()
    it.run()
    it.check_answers()


def test_refusals_say_what_to_do_and_change_nothing(bench: Benches) -> None:
    it = bench(max_model_len=40, num_blocks=9, max_num_queued_reqs=2)
    with pytest.raises(PromptTooLong, match=r"40 tokens, but prompt and answer together may have at most 40\. Shorten"):
        it.add([1] * 40)
    with pytest.raises(KVTooSmall, match=r"need 9 KV-cache blocks of 4 tokens, but the engine has 8\. Lower"):
        it.add([1] * 20, max_tokens=14)
    with pytest.raises(EmptyPrompt):
        it.add([])
    it.add([1] * 20, max_tokens=13)
    it.add([1], max_tokens=1)
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        it.add([1])
    with pytest.raises(ValueError, match="in use"):
        it.scheduler.add(it.requests[0])
    it.run()
    it.check_answers()
    it.add([1])


def test_an_aborted_request_gives_its_place_in_the_queue_back(bench: Benches) -> None:
    it = bench(max_num_queued_reqs=1)
    handle = it.add([1] * 4, n=3)
    it.abort(handle, 1)
    with pytest.raises(QueueFull):
        it.add([2] * 4)
    it.abort(handle)
    it.add([2] * 4)
    it.run()
    it.check_answers()


def test_draining_finishes_what_was_taken(bench: Benches) -> None:
    it = bench(max_num_seqs=1)
    it.add([1] * 4)
    it.add([2] * 4)
    it.scheduler.drain()
    with pytest.raises(Draining):
        it.add([3] * 4)
    it.run()
    it.check_answers()


def test_the_prefix_cache_can_be_reset_when_nothing_is_held(bench: Benches) -> None:
    it = bench()
    it.add([1] * 10, max_tokens=2)
    it.step()
    assert it.scheduler.reset_prefix_cache() is False
    it.run()
    assert it.scheduler.reset_prefix_cache() is True
    handle = it.add([1] * 10, max_tokens=1)
    it.launch()
    assert it.scheduler.cached_tokens(handle) == 0


def test_a_queue_of_aborted_requests_is_forgotten(bench: Benches) -> None:
    it = bench(max_num_seqs=1)
    kept = it.add([1] * 4, max_tokens=20)
    it.step()
    handles = [it.add([2] * 4) for _ in range(100)]
    for handle in reversed(handles):
        it.abort(handle)
    assert it.scheduler.stats().num_waiting == 0
    it.run()
    assert len(it.outputs[kept, 0]) == 20


def test_decodes_that_begin_with_the_same_blocks_are_planned_as_such(bench: Benches) -> None:
    it = bench(block_size=4)
    common = [1, 2, 3, 4, 5, 6, 7, 8]
    it.add([*common, 1], max_tokens=12)
    it.step()
    for last in (2, 3):
        it.add([*common, last], max_tokens=6)
    it.add([9, 9], max_tokens=6)
    it.run()
    said = [None if plan.shared is None else plan.shared.lens.tolist() for plan in it.plans]
    assert [8, 8, 8, 0] in said
    # Alone nobody shares; beside a prompt (the fourth one's) decodes do.
    assert said[:2] == [None, [8, 8, 8]]
    assert said[-1] is None
    it.check_answers()
