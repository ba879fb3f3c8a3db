"""The real scheduler on a fake clock: times follow from the cost of steps alone."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from quire_runtime.scheduler.config import SchedulerConfig
from quire_runtime.scheduler.simulate import Arrival, StepCost, simulate

ROOT = Path(__file__).parents[3]


def config(**changes: int) -> SchedulerConfig:
    values = {
        "max_num_seqs": 256,
        "max_num_batched_tokens": 1024,
        "max_model_len": 4096,
        "block_size": 16,
        "num_blocks": 8193,
    }
    return SchedulerConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def workloads() -> ModuleType:
    spec = importlib.util.spec_from_file_location("workloads", ROOT / "bench" / "workloads.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_request_takes_its_steps() -> None:
    run = simulate(config(), [Arrival([1] * 100, 5, at_s=2.0)], StepCost(base_ms=10.0, per_token_ms=0.1))
    # a prompt of 100 tokens: 10 + 10 ms; then four decodes of 10.1 ms
    assert run.ttft_s == pytest.approx([0.020])
    assert run.itl_s == pytest.approx([0.0101] * 4)
    assert run.num_steps == 5
    assert run.duration_s == pytest.approx(2.0604)


def test_a_longer_prompt_is_computed_in_chunks_of_the_budget() -> None:
    run = simulate(config(), [Arrival([1] * 3000, 1)], StepCost(base_ms=10.0, per_token_ms=0.1))
    assert run.num_steps == 3  # 1024 + 1024 + 952
    assert run.ttft_s == pytest.approx([0.330])


def test_a_prompt_among_decodes_makes_steps_of_the_target_size() -> None:
    talkers = [Arrival([i] * 8, 100) for i in range(8)]
    intruder = Arrival([9] * 1000, 2, at_s=0.2)
    cost = StepCost(base_ms=5.0, per_token_ms=0.05)
    free = simulate(config(), [*talkers, intruder], cost)
    held = simulate(config(mixed_step_tokens=512), [*talkers, intruder], cost)
    assert free.itl_s.max() == pytest.approx((5 + 0.05 * 1008) / 1000)
    assert held.itl_s.max() == pytest.approx((5 + 0.05 * 512) / 1000)
    alone = simulate(config(mixed_step_tokens=512), [intruder], cost)
    assert alone.num_steps == 2  # nobody waits for its steps


def test_one_long_prompt_does_not_stop_those_who_decode() -> None:
    talkers = [Arrival([i] * 8, 100) for i in range(8)]
    intruder = Arrival([9] * 4000, 2, at_s=0.2)
    cost = StepCost(base_ms=5.0, per_token_ms=0.05)
    free = simulate(config(), [*talkers, intruder], cost)
    held = simulate(config(long_prefill_token_threshold=128), [*talkers, intruder], cost)
    assert free.itl_s.max() == pytest.approx((5 + 0.05 * 1024) / 1000)
    assert held.itl_s.max() == pytest.approx((5 + 0.05 * (128 + 8)) / 1000)
    assert held.ttft_s[8] > free.ttft_s[8]


def test_a_short_prompt_behind_a_long_one_need_not_wait_for_it() -> None:
    arrivals = [Arrival([1] * 4000, 1), Arrival([2] * 16, 1, at_s=0.001)]
    cost = StepCost(base_ms=1.0, per_token_ms=0.1)
    free = simulate(config(), arrivals, cost)
    held = simulate(config(long_prefill_token_threshold=256), arrivals, cost)
    assert free.ttft_s[1] > 0.4 * free.ttft_s[0]
    assert held.ttft_s[1] < 0.2 * held.ttft_s[0]


def test_planning_ahead_hides_the_host() -> None:
    workload = [Arrival([i] * 16, 200) for i in range(16)]
    cost = StepCost(base_ms=2.0)
    waiting = simulate(config(), workload, cost, depth=1, host_s=0.001)
    ahead = simulate(config(), workload, cost, depth=2, host_s=0.001)
    assert ahead.num_steps == waiting.num_steps == 200
    assert waiting.duration_s == pytest.approx(200 * 0.003)
    assert ahead.duration_s == pytest.approx(200 * 0.002 + 0.001)


@pytest.mark.parametrize("depth", [1, 2])
def test_w1_wastes_less_than_4_percent_of_the_cache(workloads: ModuleType, depth: int) -> None:
    """The mixed batch of the benchmark: 256 requests, 100 to 1024 tokens in and out."""
    w1 = [Arrival(prompt, output_len) for prompt, output_len in workloads.w1()]
    run = simulate(config(num_blocks=32769, max_num_batched_tokens=8192), w1, StepCost(base_ms=5.0), depth)
    assert 0 < run.peak_waste_ratio < 0.04


def test_w1_with_memory_for_a_third_of_it_still_flows(workloads: ModuleType) -> None:
    """Admission leaves room to grow: few of 256 sequences are ever computed anew, and throughput follows the memory."""
    w1 = [Arrival(prompt, output_len) for prompt, output_len in workloads.w1()]
    cost = StepCost(base_ms=5.0, per_token_ms=0.02)
    roomy = simulate(config(num_blocks=32769), w1, cost)
    tight = simulate(config(num_blocks=4001), w1, cost)
    assert [len(moments) for moments in tight.token_s] == [len(moments) for moments in roomy.token_s]
    assert roomy.stats.num_preemptions == 0
    assert 0 < tight.stats.num_preemptions < len(w1) / 4
    assert tight.output_tokens_per_s > 0.5 * roomy.output_tokens_per_s
