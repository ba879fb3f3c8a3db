"""Log-probabilities of chosen and of the likeliest tokens, without a tensor of all of them."""

import torch
from torch import Tensor


def logprobs(logits: Tensor, chosen: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen token's log-probability and rank, and the k likeliest tokens with theirs, row by row.

    logits: [n, V] of any float dtype, chosen: integer [n].
    Returns tokens int32 [n, 1 + k] and logprobs fp32 [n, 1 + k], the chosen token first, then the likeliest in
    falling order, and ranks int32 [n]: 1 + the number of tokens strictly likelier than the chosen one.
    """
    index = chosen.long().unsqueeze(1)
    own = logits.gather(1, index)
    best, tokens = logits.topk(min(k, logits.shape[1]), dim=-1)
    if logits.is_cuda:
        from quire_kernels import logprobs_triton

        normaliser, ranks = logprobs_triton.normaliser_and_rank(logits, own)
    else:
        normaliser, ranks = normaliser_and_rank_reference(logits, own)
    values = torch.cat((own, best), dim=1).float() - normaliser.unsqueeze(1)
    return torch.cat((index, tokens), dim=1).int(), values, ranks


def normaliser_and_rank_reference(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """logits [n, V], own [n, 1] -> logsumexp fp32 [n]; 1 + how many logits are greater than `own`, int32 [n]."""
    return logits.float().logsumexp(dim=-1), (logits > own).sum(dim=-1, dtype=torch.int32) + 1
