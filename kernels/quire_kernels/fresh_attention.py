"""Attention of whole long prompts by cuDNN: nothing of theirs was in the cache, so keys and values need no table.

On an H200 it takes two thirds of the Triton kernel's time at 8,192 tokens. Lengths are padded to multiples of BUCKET,
because cuDNN makes a plan for each new one; prompts of one padded length that follow one another are one call, for one
of 2,048 tokens alone leaves much of the GPU idle.
"""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from quire_kernels.batch import AttentionBatch

FROM = 2048
UP_TO = 32768
BUCKET = 512
DIMENSIONS = (64, 128)
TOGETHER = (8, 4, 2, 1)
"""Prompts of one call: few numbers, for the same reason."""
TOKENS = 32768
"""Of one call, unless it is of one prompt: bounds the memory of its padded operands."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Whole prompts start .. end (query tokens of the batch) that follow one another, as rows of `padded` tokens.

    source int64 [count * padded]: the token of each place, a prompt's last one where it has ended; None: there is no
    padding. kept int64 [end - start]: the places of the tokens.
    """

    start: int
    end: int
    count: int
    source: Tensor | None
    kept: Tensor | None


@cache
def is_available() -> bool:
    return (
        torch.cuda.is_available()
        and torch.version.hip is None
        and torch.cuda.get_device_capability() >= (9, 0)
        and torch.backends.cudnn.is_available()
        and torch.backends.cuda.cudnn_sdp_enabled()
    )


def divide(batch: AttentionBatch, window: int | None) -> tuple[list[Prompts], list[AttentionBatch]]:
    """The whole long prompts, and batches of the prefills between them."""
    key = ("fresh", window)
    if key not in batch.step_work:
        batch.step_work[key] = _divide(batch, window)
    found: tuple[list[Prompts], list[AttentionBatch]] = batch.step_work[key]
    return found


def _divide(batch: AttentionBatch, window: int | None) -> tuple[list[Prompts], list[AttentionBatch]]:
    starts, lens = batch.query_starts_cpu, batch.seq_lens_cpu
    alike: list[list[int]] = []
    rest = []
    begin = batch.num_decodes
    for sequence in range(batch.num_decodes, len(lens) + 1):
        is_end = sequence == len(lens)
        if not is_end:
            length = lens[sequence]
            is_whole = starts[sequence + 1] - starts[sequence] == length
            if not (is_whole and FROM <= length <= UP_TO and (window is None or window >= length)):
                continue
            last = alike[-1] if alike else None
            if last is not None and last[-1] == sequence - 1 and _padded(lens[last[0]]) == _padded(length):
                last.append(sequence)
            else:
                alike.append([sequence])
        if begin < sequence:
            rest.append(
                replace(
                    batch,
                    num_decodes=begin,
                    query_starts_cpu=starts[: sequence + 1],
                    seq_lens_cpu=lens[:sequence],
                    step_work={},
                )
            )
        begin = sequence + 1
    device = batch.seq_lens.device
    return [_prompts(starts, part, device) for run in alike for part in _parts(run, _padded(lens[run[0]]))], rest


def _padded(length: int) -> int:
    return -(-length // BUCKET) * BUCKET


def _parts(run: list[int], padded: int) -> list[list[int]]:
    """The run in pieces whose lengths are of TOGETHER, none of more than TOKENS."""
    parts, done = [], 0
    while done < len(run):
        count = next(n for n in TOGETHER if n <= len(run) - done and (n == 1 or n * padded <= TOKENS))
        parts.append(run[done : done + count])
        done += count
    return parts


def _prompts(starts: list[int], sequences: list[int], device: torch.device) -> Prompts:
    first, end = starts[sequences[0]], starts[sequences[-1] + 1]
    padded = _padded(starts[sequences[0] + 1] - first)
    if end - first == padded * len(sequences):
        return Prompts(first, end, len(sequences), None, None)
    source, kept = [], []
    for place, sequence in enumerate(sequences):
        begin, behind = starts[sequence], starts[sequence + 1]
        source.append(torch.arange(begin - first, begin - first + padded, device=device).clamp_(max=behind - first - 1))
        kept.append(torch.arange(place * padded, place * padded + behind - begin, device=device))
    return Prompts(first, end, len(sequences), torch.cat(source), torch.cat(kept))


def attend(q: Tensor, k: Tensor, v: Tensor, prompts: Prompts, scale: float) -> Tensor:
    """Causal attention of the prompts: q [T, Hq, D], k, v [T, Hkv, D] of all tokens -> [end - start, Hq, D]."""
    own = [x[prompts.start : prompts.end] for x in (q, k, v)]
    if prompts.source is not None:
        own = [x.index_select(0, prompts.source) for x in own]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        attended = scaled_dot_product_attention(
            *(x.unflatten(0, (prompts.count, -1)).transpose(1, 2) for x in own),
            is_causal=True,
            scale=scale,
            enable_gqa=True,
        )
    attended = attended.transpose(1, 2).flatten(0, 1)
    return attended if prompts.kept is None else attended.index_select(0, prompts.kept)
