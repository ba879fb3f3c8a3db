"""Drawing tokens: penalties, filters without a sort, and Gumbel noise that depends on nothing but the request.

argmax(logits / T + Gumbel) is a draw from softmax(logits / T) (arXiv 1611.01144). The noise is a hash of (seed, choice,
position, token id): a token drawn again after a preemption, in another batch or on another replica is the same token.
"""

import torch
from torch import Tensor

from quire_kernels.noise import gumbel
from quire_kernels.penalties import apply_penalties

__all__ = ["apply_penalties", "sample"]


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    *,
    any_filter: bool = True,
) -> Tensor:
    """One token a row: int32 [n]. Temperature 0 takes the likeliest.

    logits fp32 [n, V]; temperature, top_p, min_p fp32 [n]; top_k int32 [n] (<= 0: off); seeds, positions int64 [n];
    choices int32 [n]. Filters apply after temperature, in the order min_p, top_k, top_p. `any_filter=False` skips them:
    the caller knows that no row has one.
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
    greedy = temperature == 0
    scaled = logits / torch.where(greedy, 1.0, temperature).unsqueeze(1)
    lowest = _filter_thresholds(scaled, top_k, top_p, min_p) if any_filter else None
    noisy = scaled + gumbel(seeds, positions, choices, logits.shape[1])
    if lowest is not None:
        noisy.masked_fill_(scaled < lowest.unsqueeze(1), -torch.inf)
    return torch.where(greedy, logits.argmax(dim=-1), noisy.argmax(dim=-1)).int()


def _filter_thresholds(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The lowest score that each row keeps: fp32 [n]. Tokens that tie with it are kept, too."""
    lowest = scaled.amax(dim=-1) + min_p.log()
    sorting = torch.nonzero((top_k > 0) | (top_p < 1)).squeeze(1)
    if sorting.numel():
        ordered = scaled[sorting].sort(dim=-1, descending=True).values
        width = scaled.shape[1]
        limit = torch.where(top_k[sorting] > 0, top_k[sorting].clamp(max=width), width).long()
        kth = ordered.gather(1, limit.unsqueeze(1) - 1)
        floor = torch.maximum(kth.squeeze(1), lowest[sorting])
        mass = torch.where(ordered >= floor.unsqueeze(1), ordered, -torch.inf).softmax(dim=-1)
        before = mass.cumsum(dim=-1) - mass
        kept = ((before < top_p[sorting].unsqueeze(1)) & (mass > 0)).sum(dim=-1).clamp(min=1)
        lowest[sorting] = torch.maximum(floor, ordered.gather(1, kept.unsqueeze(1) - 1).squeeze(1))
    return lowest
