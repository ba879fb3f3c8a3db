"""Log-probabilities of the model's own distribution: the chosen token, its rank, and the likeliest ones."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire_kernels.invariant_logprobs import invariant_logprobs
from quire_runtime.engine.messages import TokenLogprobs


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """r positions: `keys` (what each belongs to) and `counts` (likeliest tokens asked for) on the host, the rest on the
    device. tokens int32 and logprobs float32 [r, 1 + k]: the chosen token, then the k likeliest; ranks int32 [r].
    """

    keys: NDArray[np.intp]
    counts: list[int]
    tokens: Tensor
    logprobs: Tensor
    ranks: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        return [self.tokens, self.logprobs, self.ranks]


def top_logprobs(
    logits: Tensor, chosen: Tensor, keys: NDArray[np.intp], counts: list[int], is_deterministic: bool = False
) -> PositionLogprobs:
    """logits float32 [r, V], chosen int [r]; counts: how many of the likeliest tokens each position wants.

    is_deterministic: no position's values depend on another's.
    """
    if is_deterministic:
        return PositionLogprobs(keys, counts, *invariant_logprobs(logits, chosen, max(counts, default=0)))
    logprobs = logits.log_softmax(dim=-1)
    chosen = chosen.long().unsqueeze(1)
    own = logprobs.gather(1, chosen)
    ranks = (logprobs > own).sum(dim=-1, dtype=torch.int32) + 1
    best, tokens = logprobs.topk(min(max(counts, default=0), logits.shape[1]), dim=-1)
    return PositionLogprobs(
        keys=keys,
        counts=counts,
        tokens=torch.cat((chosen, tokens), dim=1).int(),
        logprobs=torch.cat((own, best), dim=1),
        ranks=ranks,
    )


def to_messages(
    tokens: NDArray[np.int32], logprobs: NDArray[np.float32], ranks: NDArray[np.int32], counts: list[int]
) -> list[TokenLogprobs]:
    """The arrays of a PositionLogprobs, once on the host, as one message a position."""
    return [
        TokenLogprobs(token_ids=ids[: 1 + count], logprobs=values[: 1 + count], rank=rank)
        for ids, values, rank, count in zip(tokens.tolist(), logprobs.tolist(), ranks.tolist(), counts, strict=True)
    ]
