"""The engine on a GPU says what it says on the CPU, with and without CUDA graphs."""

import random

import agree
import pytest
import torch

from quire import SamplingParams
from quire_runtime.kv import shared

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "phi3"]
WAYS = {
    "plain": {"max_num_seqs": 1},
    "mixed": {},
    "chunked": {"max_num_batched_tokens": 13},
    "preempted": {"num_gpu_blocks_override": 15, "enable_prefix_caching": False},
    "small blocks": {"block_size": 4, "num_gpu_blocks_override": 300, "long_prefill_token_threshold": 7},
}
LENGTHS = [30, 5, 24, 1, 18, 12, 28, 20]


def make_prompts() -> list[list[int]]:
    """Eight prompts of 1 to 90 tokens; the last two begin with the same 48 tokens."""
    rng = random.Random(0)
    apart = [[rng.randrange(3, 320) for _ in range(length)] for length in [1, 15, 16, 17, 40, 90]]
    shared = [rng.randrange(3, 320) for _ in range(48)]
    return [*apart, *([*shared, *(rng.randrange(3, 320) for _ in range(extra))] for extra in (5, 20))]


PROMPTS = make_prompts()


def greedy(counts: list[int]) -> list[SamplingParams]:
    return [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in counts]


def tokens(outputs) -> list[list[list[int]]]:
    return [[list(choice.token_ids) for choice in output.outputs] for output in outputs]


@pytest.mark.parametrize("is_eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_the_cpus(make_llm, on_cpu, family, way, is_eager):
    counts = [30] * len(PROMPTS) if way == "preempted" else LENGTHS
    llm = make_llm(family, "cuda", enforce_eager=is_eager, **WAYS[way])
    expected = tokens(on_cpu(family, PROMPTS, greedy(counts)))
    # The second time the graphs of every batch size stand.
    for _ in range(2):
        llm.reset_prefix_cache()
        assert tokens(llm.generate(PROMPTS, greedy(counts), use_tqdm=False)) == expected
    if way == "preempted":
        assert llm.engine.stats.num_preemptions > 0
    assert llm.engine.stats.kv_blocks_used == 0


@pytest.mark.parametrize("is_eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_the_cpus_on_a_prefix_hit(make_llm, on_cpu, family, is_eager):
    llm = make_llm(family, "cuda", enforce_eager=is_eager)
    for prompt, cached in [(PROMPTS[6], 0), (PROMPTS[7], 48), (PROMPTS[7], 64)]:
        output = llm.generate([prompt], greedy([20]), use_tqdm=False)
        assert tokens(output) == tokens(on_cpu(family, [prompt], greedy([20])))
        assert output[0].num_cached_tokens == cached


@pytest.mark.parametrize("family", FAMILIES)
def test_decodes_that_share_blocks_say_what_the_cpu_says(make_llm, on_cpu, family, monkeypatch):
    monkeypatch.setattr(shared, "LEAST_SAVED", 0)
    monkeypatch.setattr(shared, "FEWEST", 2)
    llm = make_llm(family, "cuda")
    prompts = [[*PROMPTS[7][:48], 3 + i, 7] for i in range(6)] + PROMPTS[3:6]
    counts = [24, 12, 24, 18, 24, 24, 24, 6, 24]
    expected = tokens(on_cpu(family, prompts, greedy(counts)))
    # The first fills the cache; then all of them begin with its blocks, and graphs for that are made.
    for _ in range(3):
        assert tokens(llm.generate(prompts, greedy(counts), use_tqdm=False)) == expected
    graphs = llm.engine.loaded.runner._graphs
    assert any(has_shared for _, has_shared in graphs.recordings.recorded)


def test_graphs_recorded_in_quiet_moments_say_what_the_cpu_says(make_llm, on_cpu):
    llm = make_llm("llama", "cuda")
    while llm.engine.prepare():
        pass
    for _ in range(2):
        llm.reset_prefix_cache()
        assert tokens(llm.generate(PROMPTS, greedy(LENGTHS), use_tqdm=False)) == tokens(
            on_cpu("llama", PROMPTS, greedy(LENGTHS))
        )


SAMPLED = {
    "noise": {"temperature": 0.8},
    "top_k": {"temperature": 1.0, "top_k": 7},
    "top_p": {"temperature": 1.2, "top_p": 0.7},
    "min_p": {"temperature": 1.2, "min_p": 0.05},
    "all filters": {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 0.4, "repetition_penalty": 1.2, "temperature": 0.7},
    "greedy with penalties": {"presence_penalty": 0.5, "repetition_penalty": 1.3, "temperature": 0},
    "bias": {"temperature": 0.7, "logit_bias": {7: 4.0, 9: -100.0}},
    "choices": {"temperature": 1.0, "n": 3},
}


@pytest.mark.parametrize("is_eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize("kind", [*SAMPLED, "everything at once"])
def test_sampled_tokens_equal_the_cpus(make_llm, on_cpu, kind, is_eager):
    kinds = list(SAMPLED) if kind == "everything at once" else [kind] * len(PROMPTS)
    params = [
        SamplingParams(**SAMPLED[name], seed=100 + i, max_tokens=16, ignore_eos=True) for i, name in enumerate(kinds)
    ]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(len(params))]
    llm = make_llm("llama", "cuda", enforce_eager=is_eager)
    assert tokens(llm.generate(prompts, params, use_tqdm=False)) == tokens(on_cpu("llama", prompts, params))


@pytest.mark.parametrize("is_eager", [False, True], ids=["graphs", "eager"])
def test_logprobs_equal_the_cpus(make_llm, on_cpu, is_eager):
    params = [
        SamplingParams(temperature=0.7, seed=5, max_tokens=12, logprobs=4, prompt_logprobs=3, ignore_eos=True)
    ] * len(PROMPTS)
    ours = make_llm("qwen3", "cuda", enforce_eager=is_eager).generate(PROMPTS, params, use_tqdm=False)
    theirs = on_cpu("qwen3", PROMPTS, params)
    assert tokens(ours) == tokens(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        pairs = [*zip(mine.outputs[0].logprobs, other.outputs[0].logprobs, strict=True)]
        pairs += zip(mine.prompt_logprobs[1:], other.prompt_logprobs[1:], strict=True)
        for got, wanted in pairs:
            assert {token: entry.rank for token, entry in got.items()} == {
                token: entry.rank for token, entry in wanted.items()
            }
            assert [entry.logprob for entry in got.values()] == pytest.approx(
                [entry.logprob for entry in wanted.values()], abs=1e-4
            )


def test_a_poisoned_request_ends_alone(make_llm, on_cpu):
    llm = make_llm("llama", "cuda")
    poison = 5
    llm.engine.loaded.runner.model.embedding[poison] = torch.nan
    clean = [[token for token in prompt if token != poison] for prompt in PROMPTS[1:5]]
    prompts = [clean[0], [*clean[1], poison], clean[2], clean[3]]
    outputs = llm.generate(prompts, greedy([12] * 4), use_tqdm=False)
    expected = tokens(on_cpu("llama", prompts, greedy([12] * 4)))
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error", "length", "length"]
    for i in (0, 2, 3):
        assert tokens(outputs)[i] == expected[i]
    assert llm.engine.stats.kv_blocks_used == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_differs_from_transformers_by_noise_alone(tiny_model_dir, family):
    directory = tiny_model_dir(family)
    found = agree.agreements(directory, "cuda", PROMPTS, 30, agree.Reference(directory, "cuda"))
    assert {way: agreement.wrong for way, agreement in found.items()} == dict.fromkeys(agree.WAYS, 0), found


def test_bfloat16_of_m_small_differs_from_transformers_by_noise_alone(tmp_path):
    directory = agree.random_checkpoint("m-small", tmp_path)
    prompts = agree.prompts_of(151936, [1, 15, 200, 700])
    found = agree.agreements(directory, "cuda", prompts, 64, agree.Reference(directory, "cuda"))
    assert {way: agreement.wrong for way, agreement in found.items()} == dict.fromkeys(agree.WAYS, 0), found
