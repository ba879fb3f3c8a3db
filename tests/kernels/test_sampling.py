import math

import pytest
import torch

from quire_kernels.logprobs import normaliser_and_rank
from quire_kernels.noise import gumbel
from quire_kernels.sampling import apply_penalties, sample


def draw(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seeds=None, positions=None, choices=None, **promises):
    """Every parameter alike for all rows unless it is a tensor."""
    n = len(logits)

    def column(value, dtype):
        return value if isinstance(value, torch.Tensor) else torch.full((n,), value, dtype=dtype)

    return sample(
        logits,
        column(temperature, torch.float32),
        column(top_k, torch.int32),
        column(top_p, torch.float32),
        column(min_p, torch.float32),
        column(0 if seeds is None else seeds, torch.int64),
        torch.arange(n) if positions is None else positions,
        column(0 if choices is None else choices, torch.int32),
        **promises,
    )


def frequencies(logits, rows=20000, **parameters):
    tokens = draw(logits.expand(rows, -1), **parameters)
    return torch.bincount(tokens, minlength=len(logits)) / rows


def test_temperature_zero_takes_the_likeliest_and_leaves_its_neighbours_alone():
    logits = torch.randn(6, 50)
    heat = torch.tensor([0.0, 1.0, 0.0, 0.5, 0.0, 2.0])
    tokens = draw(logits, heat)
    assert tokens.dtype == torch.int32
    assert tokens[::2].tolist() == logits.argmax(dim=-1)[::2].tolist()
    assert tokens[1::2].tolist() == draw(logits[1::2], heat[1::2], positions=torch.tensor([1, 3, 5])).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    expected = (logits / temperature).softmax(dim=0)
    # 20,000 draws: the standard deviation of a frequency is at most 0.0036.
    assert (frequencies(logits, temperature=temperature) - expected).abs().max() < 0.015


def test_filters_keep_what_vllm_keeps():
    logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05]).log()
    kept = {
        "top_k": ({"top_k": 2}, [0, 1]),
        "top_k above the vocabulary": ({"top_k": 9}, [0, 1, 2, 3, 4]),
        "top_p": ({"top_p": 0.69}, [0, 1]),
        "top_p reaches the next token": ({"top_p": 0.71}, [0, 1, 2]),
        "tiny top_p": ({"top_p": 1e-6}, [0]),
        "min_p": ({"min_p": 0.25}, [0, 1, 2]),
        "top_p of what top_k left": ({"top_k": 2, "top_p": 0.7}, [0]),
        "top_p of what min_p left": ({"min_p": 0.25, "top_p": 0.8}, [0, 1]),
        "after the temperature": ({"temperature": 10.0, "min_p": 0.85}, [0, 1, 2, 3]),
    }
    for name, (parameters, expected) in kept.items():
        seen = frequencies(logits, rows=4000, **parameters).nonzero().squeeze(1).tolist()
        assert seen == expected, name


def test_ties_of_the_last_kept_token_are_kept():
    logits = torch.tensor([1.0, 0.0, 0.0, 0.0, -9.0])
    assert frequencies(logits, rows=2000, top_k=2).nonzero().squeeze(1).tolist() == [0, 1, 2, 3]


def test_a_wide_vocabulary_with_a_flat_distribution():
    logits = torch.randn(4, 40000) * 0.1
    tokens = draw(logits, top_p=0.5)
    order = logits.argsort(dim=-1, descending=True)
    mass = logits.softmax(dim=-1).gather(1, order).cumsum(dim=-1)
    for row, token in enumerate(tokens.tolist()):
        rank = int((order[row] == token).nonzero())
        assert mass[row, rank] < 0.5 + 1e-4


def test_noise_depends_on_seed_choice_and_position_and_on_nothing_else():
    logits = torch.zeros(8, 1000)
    seeds, positions = torch.arange(8) << 33, torch.arange(8) + 5
    whole = draw(logits, seeds=seeds, positions=positions)
    for row in range(8):
        alone = draw(logits[:1], seeds=seeds[row : row + 1], positions=positions[row : row + 1])
        assert alone.item() == whole[row]
    for change in ({"seeds": seeds + 1}, {"positions": positions + 1}, {"choices": 1}):
        assert (draw(logits, **{"seeds": seeds, "positions": positions, **change}) != whole).sum() >= 7


def test_noise_is_gumbel_in_both_directions():
    row = torch.zeros(1, dtype=torch.int64)
    along = gumbel(row, row, row.int(), 100_000)[0]
    down = gumbel(torch.arange(100_000), row.expand(100_000), row.int().expand(100_000), 1)[:, 0]
    for noise in (along, down):
        assert noise.isfinite().all()
        assert abs(noise.mean().item() - 0.5772) < 0.02
        assert abs(noise.std().item() - math.pi / 6**0.5) < 0.02
        neighbours = torch.corrcoef(torch.stack((noise[:-1], noise[1:])))[0, 1]
        assert abs(neighbours.item()) < 0.015


def test_a_promise_changes_nothing_but_the_work():
    logits = torch.randn(5, 300)
    assert torch.equal(draw(logits, any_filter=False), draw(logits))


def test_a_temperature_of_0_takes_the_likeliest():
    logits = torch.randn(5, 300)
    assert torch.equal(draw(logits, 0.0), logits.argmax(dim=-1).int())


def test_masked_tokens_are_never_drawn():
    logits = torch.full((200, 20), -torch.inf)
    logits[:, 7] = 0.0
    assert (draw(logits) == 7).all()
    assert (draw(logits, top_k=3, top_p=0.9) == 7).all()


def test_penalties_by_hand():
    logits = torch.tensor([[2.0, -2.0, 1.0, 3.0, 0.5]])
    counts = torch.tensor([[0.0, 3.0, 0.0, 1.0, 0.0]])
    in_prompt = torch.tensor([[True, False, False, True, False]])
    apply_penalties(logits, counts, in_prompt, torch.tensor([0.5]), torch.tensor([0.25]), torch.tensor([2.0]))
    # Repetition: 2 / 2, -2 * 2, 1, 3 / 2, 0.5; frequency: 0.25 each time; presence: 0.5 once.
    expected = torch.tensor([[1.0, -4.0 - 0.75 - 0.5, 1.0, 1.5 - 0.25 - 0.5, 0.5]])
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_normaliser_makes_logprobs_of_logits_and_a_rank_counts_the_likelier_ones(dtype):
    logits = (torch.randn(4, 100) * 3).to(dtype)
    own = logits.gather(1, torch.tensor([[0], [99], [5], [5]]))
    normaliser, ranks = normaliser_and_rank(logits, own)
    every = logits.float().log_softmax(dim=-1)
    torch.testing.assert_close(logits.float() - normaliser.unsqueeze(1), every)
    assert ranks.tolist() == [1 + int((logits[row] > own[row]).sum()) for row in range(4)]
