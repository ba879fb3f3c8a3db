"""The likeliest token of each row."""

import torch
from torch import Tensor


def likeliest(
    logits: Tensor,
    poisoned: int,
    out: Tensor,
    turn: Tensor,
    rows: Tensor | None = None,
    positions: Tensor | None = None,
    tokens: Tensor | None = None,
) -> None:
    """out[turn, i] = the lowest id of the largest logit in row i, or `poisoned` where the row holds a NaN.

    logits [n, V] of any float dtype; out int32 [turns, >= n]; turn int32 [1], on the device, so that a CUDA graph can
    alternate between outputs. With rows, positions (int32 [n]) and tokens (int32 [rows, width]) the token is recorded
    at tokens[rows[i], positions[i]] too.
    """
    if logits.is_cuda:
        from quire_kernels import greedy_triton

        greedy_triton.likeliest(logits, poisoned, out, turn, rows, positions, tokens)
    else:
        likeliest_reference(logits, poisoned, out, turn, rows, positions, tokens)


def likeliest_reference(
    logits: Tensor,
    poisoned: int,
    out: Tensor,
    turn: Tensor,
    rows: Tensor | None,
    positions: Tensor | None,
    tokens: Tensor | None,
) -> None:
    """As `likeliest`."""
    drawn = logits.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).argmax(dim=-1).int()
    out[turn.long(), : len(drawn)] = torch.where(logits.isnan().any(dim=-1), poisoned, drawn)
    if rows is not None and positions is not None and tokens is not None:
        tokens[rows.long(), positions.long()] = drawn
