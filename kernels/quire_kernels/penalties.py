"""Penalties on tokens that were already used."""

import torch
from torch import Tensor


def apply_penalties(
    logits: Tensor,
    counts_output: Tensor,
    prompt_mask: Tensor,
    presence: Tensor,
    frequency: Tensor,
    repetition: Tensor,
) -> None:
    """Change fp32 logits [n, V] in place, on any device.

    counts_output [n, V]: how often each token was generated; prompt_mask bool [n, V]: is it in the prompt.
    repetition [n] divides positive and multiplies negative logits of tokens in prompt or output (arXiv 1909.05858);
    frequency [n] is subtracted once for each occurrence in the output, presence [n] once if there is any.
    """
    is_used = counts_output > 0
    factor = repetition.unsqueeze(1)
    penalised = torch.where(logits > 0, logits / factor, logits * factor)
    torch.where(is_used | prompt_mask, penalised, logits, out=logits)
    logits.sub_(frequency.unsqueeze(1) * counts_output).sub_(presence.unsqueeze(1) * is_used)
