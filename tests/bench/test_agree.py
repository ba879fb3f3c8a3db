"""bf16 beside Transformers' fp32: what counts as noise, and the engine on this machine."""

from pathlib import Path

import agree
import pytest
import torch

TINY = Path(__file__).parents[2] / "models" / "quire-tiny"
COUNT = 16


def test_a_difference_is_noise_only_where_the_logits_are_close():
    # Standard deviation of each row: 2. Gaps of 0, 0.05, 0.1 and 1 of it.
    low = torch.tensor([[-1.0, -3.0], [-1.0, -3.0], [-1.0, -3.0], [-1.0, -3.0]])
    row = torch.tensor([1.0, 1.0 + 2 * 0.05, 1.0 + 2 * 0.1, 1.0 + 2 * 1.0])
    logits = torch.stack([torch.cat([low[i], torch.tensor([1.0]), row[i : i + 1]]) for i in range(4)])
    scale = logits.std(1, keepdim=True)
    tokens = torch.tensor([2, 2, 2, 2])
    gaps = ((logits.amax(1) - logits[:, 2]) / scale[:, 0]).tolist()
    epsilon = (gaps[1] + gaps[2]) / 2
    found = agree.judge(logits, tokens, epsilon)
    assert (found.positions, found.equal, found.noise, found.wrong) == (4, 1, 1, 2)
    assert found.largest == pytest.approx(gaps[3], abs=1e-4)


def test_shares_are_of_all_answers():
    whole = agree.together([agree.Agreement(30, 29, 1, 0, 0.02), agree.Agreement(10, 8, 1, 1, 0.4)])
    assert (whole.positions, whole.equal, whole.noise, whole.wrong, whole.largest) == (40, 37, 2, 1, 0.4)
    assert whole.share_noise == 0.05


@pytest.fixture(scope="module")
def reference() -> agree.Reference:
    return agree.Reference(TINY, "cpu")


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return agree.prompts_of(1536, [1, 15, 64, 130])


def test_the_engine_in_bf16_differs_from_transformers_by_noise_alone(reference, prompts):
    found = agree.agreements(TINY, "cpu", prompts, COUNT, reference)
    assert set(found) == set(agree.WAYS)
    for way, agreement in found.items():
        assert agreement.positions == len(prompts) * COUNT
        assert agreement.wrong == 0, (way, agreement)


def test_a_wrong_token_is_found(reference, prompts):
    answer = [7, 11, 13]
    assert reference.judge(prompts[1], answer).wrong > 0
