"""Drawing tokens: penalties, filters without a sort, and Gumbel noise that depends on nothing but the request.

argmax(logits / T + Gumbel) is a draw from softmax(logits / T) (arXiv 1611.01144). The noise is a hash of (seed, choice,
position, token id): a token drawn again after a preemption, in another batch or on another replica is the same token.
"""

import torch
from torch import Tensor

from quire_kernels.noise import gumbel
from quire_kernels.penalties import apply_penalties

__all__ = ["apply_penalties", "sample"]


HEAD = 256
"""Likeliest tokens that a top-p looks at first; more only where they hold too little of the mass."""


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    any_filter: bool = True,
) -> Tensor:
    """One token a row, int32 [n]: argmax of logits / temperature + Gumbel noise over the tokens that the filters keep.

    logits: [n, V] of any float dtype, not changed. temperature fp32 [n]: 0 takes the likeliest token.
    top_k int32 [n] (<= 0: off), top_p, min_p fp32 [n] (1 and 0: off), applied after the temperature in the order
    min-p, top-k, top-p, each to what the ones before it left; tokens as likely as the last one kept are kept, too.
    seeds, positions int64 [n], choices int32 [n] decide the noise; any_filter=False promises that no row has a filter.
    """
    if logits.is_cuda:
        from quire_kernels import sampling_triton

        return sampling_triton.sample(logits, temperature, top_k, top_p, min_p, seeds, positions, choices, any_filter)
    return sample_reference(logits, temperature, top_k, top_p, min_p, seeds, positions, choices, any_filter)


def sample_reference(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    any_filter: bool,
) -> Tensor:
    """As `sample`, of which this is the CPU path."""
    noisy = temperature > 0
    if not noisy.all():
        tokens = logits.argmax(dim=-1).int()
        rows = noisy.nonzero().squeeze(1)
        if len(rows):
            own = (column[rows] for column in (logits, temperature, top_k, top_p, min_p, seeds, positions, choices))
            tokens[rows] = sample_reference(*own, any_filter)
        return tokens
    wide = logits.float()
    scores = gumbel(seeds, positions, choices, logits.shape[1]).addcdiv_(wide, temperature.unsqueeze(1))
    if any_filter:
        least = _least_kept(wide, temperature, top_k, top_p, min_p)
        scores.masked_fill_(wide < least.unsqueeze(1), -torch.inf)
    return scores.argmax(dim=-1).int()


def _least_kept(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The lowest logit that each row's filters keep, fp32 [n]; -inf for a row without any. logits: fp32 [n, V]."""
    vocab = logits.shape[1]
    least = torch.full_like(temperature, -torch.inf)
    rows = ((top_p < 1) | (min_p > 0) | ((top_k > 0) & (top_k < vocab))).nonzero().squeeze(1)
    if len(rows) == 0:
        return least
    x, heat, p, k = logits[rows], temperature[rows].unsqueeze(1), top_p[rows], top_k[rows].long()
    k = torch.where((k > 0) & (k < vocab), k, vocab)
    has_top_k = k < vocab
    best = x.amax(dim=-1, keepdim=True)
    width = min(vocab, max(HEAD, int(torch.where(has_top_k, k, 0).max())))
    while True:
        head = x.topk(width, dim=-1).values
        kth = head.gather(1, k.clamp_max(width).unsqueeze(1) - 1)
        floor = torch.where(has_top_k.unsqueeze(1), kth, -torch.inf)
        floor = torch.maximum(floor, best + heat * min_p[rows].log().unsqueeze(1))
        wanted = p.unsqueeze(1) * _mass(x, best, heat, floor).sum(dim=-1, keepdim=True)
        mass = _mass(head, best, heat, floor).cumsum(dim=-1)
        if width == vocab or bool((has_top_k | (p >= 1) | (mass[:, -1:] >= wanted).squeeze(1)).all()):
            break
        width = min(vocab, 16 * width)
    last = (mass < wanted).sum(dim=-1, keepdim=True).clamp_max(width - 1)
    nucleus = torch.where(p.unsqueeze(1) < 1, head.gather(1, last), -torch.inf)
    least[rows] = torch.maximum(floor, nucleus).squeeze(1)
    return least


def _mass(x: Tensor, best: Tensor, heat: Tensor, floor: Tensor) -> Tensor:
    """Unnormalised probabilities, 0 below the floor."""
    return ((x - best) / heat).exp_().masked_fill_(x < floor, 0)
