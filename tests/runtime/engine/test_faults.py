"""One bad request ends alone; nothing leaks."""

import pytest
import torch

from quire_api.sampling import SamplingParams
from quire_runtime.engine.engine import InvalidRequest
from quire_runtime.scheduler.errors import KVTooSmall, PromptTooLong, QueueFull
from quire_runtime.scheduler.request import FinishReason

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


@pytest.mark.parametrize("is_async", [False, True], ids=["depth 1", "depth 2"])
def test_a_poisoned_request_ends_alone(drive, greedy, prompts, is_async):
    driver = drive(async_scheduling=is_async, num_gpu_blocks_override=20)
    clean = prompts[:5]
    used = {token for prompt in clean for token in [*prompt, *greedy("llama", prompt, 20)]}
    poison = next(token for token in range(3, 320) if token not in used)
    with torch.inference_mode():
        driver.engine.loaded.runner.model.embedding[poison] = torch.nan
    driver.engine.add(0, [*prompts[5][:40], poison], GREEDY)
    for handle, prompt in enumerate(clean, start=1):
        driver.engine.add(handle, prompt, GREEDY)
    driver.run()
    assert driver.finish[0, 0] == FinishReason.ERROR
    assert "not a number" in driver.errors[0]
    assert driver.engine.stats.num_corrupted == 1
    # Its blocks are used again: what they held must not reach anyone.
    for handle, prompt in enumerate(clean, start=10):
        driver.engine.add(handle, prompt, GREEDY)
    driver.run()
    for handle, prompt in [*enumerate(clean, start=1), *enumerate(clean, start=10)]:
        assert driver.tokens[handle, 0] == greedy("llama", prompt, 20)


@pytest.mark.parametrize("is_async", [False, True], ids=["depth 1", "depth 2"])
def test_an_abort_frees_everything_at_once(drive, greedy, prompts, is_async):
    driver = drive(async_scheduling=is_async)
    for handle, prompt in enumerate(prompts[3:6]):
        driver.engine.add(handle, prompt, GREEDY)
    for _ in range(5):
        driver.take(driver.engine.step())
    seen = len(driver.tokens[1, 0])
    driver.engine.abort(1)
    driver.engine.abort(1)
    driver.run()
    assert len(driver.tokens[1, 0]) == seen
    assert (1, 0) not in driver.finish
    assert driver.tokens[2, 0] == greedy("llama", prompts[5], 20)


def test_one_choice_can_be_aborted(drive, prompts):
    driver = drive()
    driver.engine.add(0, prompts[3], SamplingParams(n=3, seed=4, max_tokens=20, ignore_eos=True))
    for _ in range(5):
        driver.take(driver.engine.step())
    driver.engine.abort(0, choice=1)
    driver.run()
    assert [len(driver.tokens[0, choice]) for choice in (0, 2)] == [20, 20]
    assert len(driver.tokens[0, 1]) < 20


def test_bad_requests_are_refused_in_a_sentence(drive, prompts):
    engine = drive(num_gpu_blocks_override=5, max_num_queued_reqs=2).engine
    with pytest.raises(PromptTooLong, match="256"):
        engine.add(0, [5] * 256, GREEDY)
    with pytest.raises(KVTooSmall, match="blocks"):
        engine.add(0, [5] * 60, GREEDY)
    with pytest.raises(InvalidRequest, match="Token id 320"):
        engine.add(0, [5, 320], GREEDY)
    with pytest.raises(InvalidRequest, match="Token id -1"):
        engine.add(0, [-1], GREEDY)
    engine.add(0, prompts[0], GREEDY)
    engine.add(1, prompts[0], GREEDY)
    with pytest.raises(QueueFull):
        engine.add(2, prompts[0], GREEDY)
    engine.abort(0)
    engine.abort(1)
    assert not engine.has_work
    assert engine.stats.kv_blocks_used == 0


def test_max_tokens_none_fills_the_window(drive, prompts):
    driver = drive(max_model_len=64)
    driver.engine.add(0, prompts[4], SamplingParams(temperature=0, max_tokens=None, ignore_eos=True))
    driver.run()
    assert len(driver.tokens[0, 0]) == 64 - 40
    assert driver.finish[0, 0] == FinishReason.LENGTH


def test_the_queue_has_a_bound_even_if_nobody_set_one(drive):
    engine = drive().engine
    bound = engine.config.max_num_queued_reqs
    for handle in range(bound):
        engine.add(handle, [5], GREEDY)
    with pytest.raises(QueueFull, match=f"{bound} requests are waiting"):
        engine.add(bound, [5], GREEDY)
