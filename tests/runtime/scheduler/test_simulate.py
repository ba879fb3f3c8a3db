"""The real scheduler on a fake clock: times follow from the cost of steps alone."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from quire_api.sampling import SamplingParams
from quire_runtime.scheduler.config import SchedulerConfig
from quire_runtime.scheduler.request import Request
from quire_runtime.scheduler.scheduler import Scheduler
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


def test_what_need_not_be_computed_does_not_make_mixed_steps_longer() -> None:
    """4,000 more tokens wait by their number, but of each prompt of 1,000 tokens 992 are cached."""
    prompt = [9] * 1000
    talkers = [Arrival([i] * 8, 200) for i in range(8)]
    first = Arrival(prompt, 2, at_s=0.1)
    newcomer = Arrival([7] * 900, 2, at_s=0.3)
    cost = StepCost(base_ms=5.0, per_token_ms=0.05)
    again = [Arrival(prompt, 2, at_s=0.3) for _ in range(4)]
    run = simulate(config(mixed_step_tokens=512), [*talkers, first, newcomer, *again], cost)
    assert run.itl_s.max() == pytest.approx((5 + 0.05 * 512) / 1000)


def test_choices_wait_with_one_token_each_beside_the_one_that_computes_their_prompt() -> None:
    scheduler = Scheduler(config(mixed_step_tokens=512, max_num_seqs=2), "simulated")

    def step() -> int:
        plan = scheduler.plan()
        assert plan is not None
        scheduler.update(plan, np.zeros(len(plan.rows), np.int32))
        return int(plan.query_lens.sum())

    scheduler.add(Request(0, [1] * 8, SamplingParams(), seed=0, max_tokens=100))
    assert step() == 8
    scheduler.add(Request(1, [2] * 600, SamplingParams(n=20), seed=0, max_tokens=3))
    assert [step(), step()] == [512, 90]  # one decode beside 511 and 89 tokens of the prompt
    scheduler.add(Request(2, [3] * 900, SamplingParams(), seed=0, max_tokens=1, priority=-1))
    # Both rows are taken until choice 0 ends; then the newcomer comes first, beside 19 choices that wait.
    assert [step(), step(), step()] == [2, 2, 512]
