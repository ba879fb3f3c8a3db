"""Log-probabilities that are bitwise the same for a row whatever rows are beside it."""

import torch
from torch import Tensor

from quire_kernels.logprobs import normaliser_and_rank


def invariant_logprobs(logits: Tensor, chosen: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen token's log-probability and rank, and the k likeliest tokens with theirs, row by row.

    logits: fp32 [n, V], chosen: integer [n].
    Returns tokens int32 [n, 1 + k] and logprobs fp32 [n, 1 + k], the chosen token first, then the likeliest in falling
    order (of equal ones the lower id first, which a library's top-k leaves open), and ranks int32 [n]: 1 + the number
    of tokens strictly likelier than the chosen one.
    """
    index = chosen.long().unsqueeze(1)
    own = logits.gather(1, index)
    tokens = _ordered(logits).topk(min(k, logits.shape[1]), dim=-1).indices
    if logits.is_cuda:
        normaliser, ranks = normaliser_and_rank(logits, own)
    else:
        normaliser = torch.empty(len(logits), dtype=torch.float32)
        ranks = torch.empty(len(logits), dtype=torch.int32)
        for row in range(len(logits)):
            alone = slice(row, row + 1)
            # A copy is aligned as every copy; vector loops begin at aligned places.
            normaliser[alone], ranks[alone] = normaliser_and_rank(logits[alone].clone(), own[alone])
    values = torch.cat((own, logits.gather(1, tokens)), dim=1) - normaliser.unsqueeze(1)
    return torch.cat((index, tokens), dim=1).int(), values, ranks


def _ordered(logits: Tensor) -> Tensor:
    """int64 [n, V], no two alike in a row, in the order of the logits; of equal ones the lower id is the larger."""
    bits = (logits + 0.0).view(torch.int32)
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    vocab = logits.shape[1]
    return rising * vocab - torch.arange(vocab, device=logits.device)
