"""Greedy tokens equal Transformers' in fp32, however the work is cut into steps."""

import pytest

from quire_api.sampling import SamplingParams

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "phi3"]
LENGTHS = [30, 5, 24, 1, 18, 12, 28, 20]
WAYS = {
    "plain": {"max_num_seqs": 1},
    "mixed": {},
    "chunked": {"max_num_batched_tokens": 13},
    "small blocks": {"block_size": 4, "num_gpu_blocks_override": 300, "long_prefill_token_threshold": 7},
}


def greedy_params(count: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)


@pytest.mark.parametrize("is_async", [False, True], ids=["depth 1", "depth 2"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_transformers(drive, greedy, prompts, family, way, is_async):
    driver = drive(family, async_scheduling=is_async, **WAYS[way])
    for handle, (prompt, count) in enumerate(zip(prompts, LENGTHS, strict=True)):
        driver.engine.add(handle, prompt, greedy_params(count))
    driver.run()
    for handle, (prompt, count) in enumerate(zip(prompts, LENGTHS, strict=True)):
        assert driver.tokens[handle, 0] == greedy(family, prompt, count)


@pytest.mark.parametrize("is_async", [False, True], ids=["depth 1", "depth 2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_transformers_after_preemption(drive, greedy, prompts, family, is_async):
    # Eight prompts need 22 blocks and grow by 11; the pool has 14, so some are thrown out in mid-answer.
    driver = drive(family, async_scheduling=is_async, num_gpu_blocks_override=15, enable_prefix_caching=False)
    for handle, prompt in enumerate(prompts):
        driver.engine.add(handle, prompt, greedy_params(30))
    driver.run()
    assert driver.engine.stats.num_preemptions > 0
    for handle, prompt in enumerate(prompts):
        assert driver.tokens[handle, 0] == greedy(family, prompt, 30)


@pytest.mark.parametrize("is_async", [False, True], ids=["depth 1", "depth 2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_transformers_on_a_prefix_hit(drive, greedy, prompts, family, is_async):
    driver = drive(family, async_scheduling=is_async)
    for handle, prompt in enumerate([prompts[6], prompts[7], prompts[7]]):
        driver.engine.add(handle, prompt, greedy_params(20))
        driver.run()
        assert driver.tokens[handle, 0] == greedy(family, prompt, 20)
    # 48 shared tokens are three blocks; the third request finds its whole prompt but the partial block.
    assert [driver.cached[handle, 0] for handle in range(3)] == [0, 48, 64]


def test_a_late_request_joins_the_running_batch(drive, greedy, prompts):
    driver = drive(async_scheduling=True)
    driver.engine.add(0, prompts[4], greedy_params(30))
    for _ in range(10):
        driver.take(driver.engine.step())
    driver.engine.add(1, prompts[5], greedy_params(10))
    driver.run()
    assert driver.tokens[0, 0] == greedy("llama", prompts[4], 30)
    assert driver.tokens[1, 0] == greedy("llama", prompts[5], 10)


def test_length_limited_answers_waste_no_step(drive, prompts):
    driver = drive(async_scheduling=True)
    driver.engine.add(0, prompts[1], greedy_params(12))
    driver.run()
    assert driver.engine.stats.steps == 12
