"""What log-probabilities need of all logits, without a tensor of all of them."""

import torch
from torch import Tensor


def normaliser_and_rank(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """logits [n, V] of any float dtype, own [n, 1] of the same: a logit of each row.

    Returns logsumexp fp32 [n], and int32 [n]: 1 + the number of logits greater than `own`.
    """
    if logits.is_cuda:
        from quire_kernels import logprobs_triton

        return logprobs_triton.normaliser_and_rank(logits, own)
    return normaliser_and_rank_reference(logits, own)


def normaliser_and_rank_reference(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """As `normaliser_and_rank`."""
    return logits.float().logsumexp(dim=-1), (logits > own).sum(dim=-1, dtype=torch.int32) + 1
