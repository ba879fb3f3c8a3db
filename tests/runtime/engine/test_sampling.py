"""Sampling parameters beside a plain reference on Transformers' logits."""

import random

import pytest
import torch

from quire_api.sampling import SamplingParams
from quire_runtime.scheduler.request import FinishReason

VOCAB = 320


def logits_of(reference, tokens):
    with torch.no_grad():
        return reference("llama")(torch.tensor([tokens])).logits[0].double()


def run_one(driver, prompt, handle=0, **params):
    driver.engine.add(handle, prompt, SamplingParams(**params))
    driver.run()
    return driver.tokens[handle, 0]


PENALTIES = {
    "repetition": {"repetition_penalty": 1.7},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 0.8},
    "bias": {"logit_bias": {7: 4.0, 300: -100.0, 11: 3.5}},
    "all": {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
        "logit_bias": {7: 3.0, 12: 3.0},
    },
}


def reference_with_penalties(reference, prompt, count, asked):
    tokens = list(prompt)
    for _ in range(count):
        logits = logits_of(reference, tokens)[-1]
        for token, bias in asked.get("logit_bias", {}).items():
            logits[token] += bias
        factor = asked.get("repetition_penalty", 1.0)
        for token in set(tokens):
            logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
        output = tokens[len(prompt) :]
        for token in set(output):
            logits[token] -= asked.get("frequency_penalty", 0.0) * output.count(token)
            logits[token] -= asked.get("presence_penalty", 0.0)
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("is_async", [False, True], ids=["depth 1", "depth 2"])
@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_and_bias(drive, reference, greedy, prompts, name, is_async):
    asked = PENALTIES[name]
    driver = drive(async_scheduling=is_async)
    # Neighbours without penalties must not be touched by them.
    driver.engine.add(1, prompts[1], SamplingParams(temperature=0, max_tokens=25, ignore_eos=True))
    tokens = run_one(driver, prompts[4], temperature=0, max_tokens=25, ignore_eos=True, **asked)
    assert tokens == reference_with_penalties(reference, prompts[4], 25, asked)
    assert driver.tokens[1, 0] == greedy("llama", prompts[1], 25)


def allowed(logits, top_k=0, top_p=1.0, min_p=0.0, temperature=1.0):
    probs = (logits / temperature).softmax(-1)
    keep = probs >= min_p * probs.max()
    order = probs.argsort(descending=True)
    ranks = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    if top_k > 0:
        keep &= ranks < top_k
    left = torch.where(keep, probs, 0.0)
    left /= left.sum()
    before = left[order].cumsum(0) - left[order]
    keep &= torch.empty_like(before).scatter_(0, order, before) < top_p
    return set(keep.nonzero().flatten().tolist())


@pytest.mark.parametrize(
    "filters",
    [{"top_k": 3}, {"top_p": 0.4}, {"min_p": 0.3}, {"top_k": 20, "top_p": 0.6, "min_p": 0.05, "temperature": 0.7}],
    ids=["top_k", "top_p", "min_p", "together"],
)
def test_filters_keep_the_likeliest(drive, reference, prompts, filters):
    driver = drive()
    for handle in range(4):
        params = SamplingParams(seed=handle, max_tokens=20, ignore_eos=True, **filters)
        driver.engine.add(handle, prompts[4], params)
    driver.run()
    drawn = set()
    for handle in range(4):
        tokens = driver.tokens[handle, 0]
        logits = logits_of(reference, [*prompts[4], *tokens])
        for i, token in enumerate(tokens):
            assert token in allowed(logits[len(prompts[4]) - 1 + i], **filters)
        drawn.add(tuple(tokens))
    assert len(drawn) > 1


def test_draws_follow_the_distribution(drive, reference, prompts):
    # 1,280 draws of 4 tokens: the standard deviation of a share is at most 0.014, and 0.06 is four of them.
    driver = drive(max_num_seqs=64)
    for handle in range(10):
        driver.engine.add(
            handle, prompts[2], SamplingParams(n=128, seed=handle, max_tokens=1, top_k=4, temperature=1.5)
        )
    driver.run()
    drawn = [tokens[0] for tokens in driver.tokens.values()]
    assert len(drawn) == 1280
    logits = logits_of(reference, prompts[2])[-1] / 1.5
    best = logits.topk(4)
    for token, share in zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True):
        assert drawn.count(token) / 1280 == pytest.approx(share, abs=0.06)


SEEDED = {"max_tokens": 25, "ignore_eos": True, "temperature": 1.0}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"async_scheduling": True},
        {"max_num_batched_tokens": 11},
        {"num_gpu_blocks_override": 15, "enable_prefix_caching": False, "async_scheduling": True},
    ],
    ids=["plain", "depth 2", "chunked", "preempted"],
)
def test_a_seed_means_the_same_tokens_in_any_company(drive, prompts, settings):
    alone = run_one(drive(max_num_seqs=1), prompts[3], seed=42, **SEEDED)
    driver = drive(**settings)
    for handle, prompt in enumerate(prompts, start=1):
        driver.engine.add(handle, prompt, SamplingParams(seed=handle, **SEEDED))
    driver.engine.add(100, prompts[3], SamplingParams(seed=42, **SEEDED))
    driver.run()
    assert driver.tokens[100, 0] == alone
    assert driver.tokens[4, 0] != alone


def test_without_a_seed_requests_differ_and_the_engines_seed_decides(drive, prompts):
    def answers(seed):
        driver = drive(seed=seed)
        for handle in range(3):
            driver.engine.add(handle, prompts[3], SamplingParams(**SEEDED))
        driver.run()
        return [driver.tokens[handle, 0] for handle in range(3)]

    first = answers(0)
    assert len({tuple(tokens) for tokens in first}) == 3
    assert answers(0) == first
    assert answers(1) != first


@pytest.mark.parametrize("is_async", [False, True], ids=["depth 1", "depth 2"])
def test_choices_share_the_prompts_blocks(drive, greedy, prompts, is_async):
    # 90 prompt tokens are 5 full blocks and a part: four choices hold 5 + 4 blocks, not 4 x 6.
    driver = drive(async_scheduling=is_async)
    driver.engine.add(0, prompts[5], SamplingParams(n=4, temperature=0, max_tokens=6, ignore_eos=True))
    most = 0
    while driver.engine.has_work:
        driver.take(driver.engine.step())
        most = max(most, driver.engine.stats.kv_blocks_used)
    assert most == 9
    assert all(driver.tokens[0, choice] == greedy("llama", prompts[5], 6) for choice in range(4))


def test_choices_of_a_seed_differ_and_the_first_is_that_of_n_1(drive, prompts):
    driver = drive()
    driver.engine.add(0, prompts[3], SamplingParams(n=3, seed=9, **SEEDED))
    alone = run_one(driver, prompts[3], handle=1, seed=9, **SEEDED)
    assert driver.tokens[0, 0] == alone
    assert len({tuple(driver.tokens[0, choice]) for choice in range(3)}) == 3


@pytest.mark.parametrize("is_async", [False, True], ids=["depth 1", "depth 2"])
def test_stop_token_ids_end_the_answer_and_are_part_of_it(drive, greedy, prompts, is_async):
    plain = greedy("llama", prompts[4], 20)
    stop = next(token for i, token in enumerate(plain) if i >= 5 and token not in plain[:i])
    driver = drive(async_scheduling=is_async)
    tokens = run_one(driver, prompts[4], temperature=0, max_tokens=20, stop_token_ids=[stop])
    assert tokens == plain[: plain.index(stop) + 1]
    assert driver.finish[0, 0] == FinishReason.STOP


def test_end_of_sequence_ends_unless_ignored(drive, prompts):
    driver = drive()
    always_eos = {"temperature": 0, "max_tokens": 8, "logit_bias": {2: 100.0}}
    assert run_one(driver, prompts[4], handle=0, **always_eos) == [2]
    assert driver.finish[0, 0] == FinishReason.STOP
    assert run_one(driver, prompts[4], handle=1, ignore_eos=True, **always_eos) == [2] * 8
    assert driver.finish[1, 0] == FinishReason.LENGTH


@pytest.mark.parametrize("is_async", [False, True], ids=["depth 1", "depth 2"])
def test_min_tokens_holds_every_stop_back(drive, prompts, is_async):
    driver = drive(async_scheduling=is_async)
    params = {"temperature": 0, "max_tokens": 20, "min_tokens": 6, "logit_bias": {2: 100.0, 9: 90.0}}
    tokens = run_one(driver, prompts[4], stop_token_ids=[9], **params)
    assert len(tokens) == 7
    assert tokens[6] == 2
    assert not {2, 9} & set(tokens[:6])


@pytest.mark.parametrize("is_async", [False, True], ids=["depth 1", "depth 2"])
def test_logprobs_are_the_models_own(drive, reference, prompts, is_async):
    driver = drive(async_scheduling=is_async)
    driver.engine.add(1, prompts[2], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    asked = {"seed": 3, "temperature": 1.4, "top_k": 30, "presence_penalty": 1.0, "logit_bias": {5: 2.0}}
    tokens = run_one(driver, prompts[4], max_tokens=12, ignore_eos=True, logprobs=4, **asked)
    expected = logits_of(reference, [*prompts[4], *tokens]).log_softmax(-1)[len(prompts[4]) - 1 :]
    assert (1, 0) not in driver.logprobs
    assert len(driver.logprobs[0, 0]) == 12
    for i, (token, entry) in enumerate(zip(tokens, driver.logprobs[0, 0], strict=True)):
        best = expected[i].topk(4)
        assert entry.token_ids == [token, *best.indices.tolist()]
        assert entry.logprobs == pytest.approx([expected[i][token].item(), *best.values.tolist()], abs=1e-3)
        assert entry.rank == 1 + int((expected[i] > expected[i][token]).sum())


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_batched_tokens": 13}, {"num_gpu_blocks_override": 15, "async_scheduling": True}],
    ids=["plain", "chunked", "preempted"],
)
def test_prompt_logprobs_cover_the_prompt_once(drive, reference, prompts, settings):
    driver = drive(**settings)
    run_one(driver, prompts[5], handle=0, temperature=0, max_tokens=2, ignore_eos=True)
    for handle, prompt in enumerate(prompts[3:6], start=1):
        params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, prompt_logprobs=2, n=2)
        driver.engine.add(handle, prompt, params)
    driver.run()
    for handle, prompt in enumerate(prompts[3:6], start=1):
        expected = logits_of(reference, prompt).log_softmax(-1)
        position = 1
        for part in driver.prompt_logprobs[handle]:
            assert part.start == position
            for entry in part.positions:
                best = expected[position - 1].topk(2)
                own = expected[position - 1][prompt[position]]
                assert entry.token_ids == [prompt[position], *best.indices.tolist()]
                assert entry.logprobs == pytest.approx([own.item(), *best.values.tolist()], abs=1e-3)
                assert entry.rank == 1 + int((expected[position - 1] > own).sum())
                position += 1
        assert position == len(prompt)


def test_a_crowd_of_different_wishes_shares_a_batch(drive, greedy, prompts):
    rng = random.Random(1)
    driver = drive(async_scheduling=True)
    for handle in range(24):
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.8]),
            top_k=rng.choice([0, 5]),
            min_p=rng.choice([0.0, 0.1]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            logit_bias=rng.choice([None, {8: 1.0}]),
            logprobs=rng.choice([None, 3]),
            max_tokens=rng.randrange(1, 20),
            ignore_eos=True,
            n=rng.choice([1, 2]),
        )
        driver.engine.add(handle, rng.choice(prompts), params)
    driver.engine.add(99, prompts[4], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    driver.run()
    assert driver.tokens[99, 0] == greedy("llama", prompts[4], 20)
    assert all(0 <= token < VOCAB for tokens in driver.tokens.values() for token in tokens)
    assert set(driver.finish.values()) == {FinishReason.LENGTH}
