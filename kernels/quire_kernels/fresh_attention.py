"""Attention of whole long prompts by cuDNN: nothing of theirs was in the cache, so keys and values need no table.

On an H200 it takes two thirds of the Triton kernel's time at 8,192 tokens. Lengths are padded to multiples of BUCKET,
because cuDNN makes a plan for each new one.
"""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from quire_kernels.batch import AttentionBatch

FROM = 2048
UP_TO = 32768
BUCKET = 512
DIMENSIONS = (64, 128)


@cache
def is_available() -> bool:
    return (
        torch.cuda.is_available()
        and torch.version.hip is None
        and torch.cuda.get_device_capability() >= (9, 0)
        and torch.backends.cudnn.is_available()
        and torch.backends.cuda.cudnn_sdp_enabled()
    )


def divide(batch: AttentionBatch, window: int | None) -> tuple[list[tuple[int, int]], list[AttentionBatch]]:
    """First and last + 1 query token of each whole long prompt, and batches of the prefills between them."""
    key = ("fresh", window)
    if key not in batch.layouts:
        batch.layouts[key] = _divide(batch, window)
    found: tuple[list[tuple[int, int]], list[AttentionBatch]] = batch.layouts[key]
    return found


def _divide(batch: AttentionBatch, window: int | None) -> tuple[list[tuple[int, int]], list[AttentionBatch]]:
    starts, lens = batch.query_starts_cpu, batch.seq_lens_cpu
    fresh, rest = [], []
    begin = batch.num_decodes
    for sequence in range(batch.num_decodes, len(lens) + 1):
        is_end = sequence == len(lens)
        if not is_end:
            length = lens[sequence]
            is_whole = starts[sequence + 1] - starts[sequence] == length
            if not (is_whole and FROM <= length <= UP_TO and (window is None or window >= length)):
                continue
            fresh.append((starts[sequence], starts[sequence + 1]))
        if begin < sequence:
            rest.append(
                replace(
                    batch,
                    num_decodes=begin,
                    query_starts_cpu=starts[: sequence + 1],
                    seq_lens_cpu=lens[:sequence],
                    layouts={},
                )
            )
        begin = sequence + 1
    return fresh, rest


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """Causal attention of one prompt: q [T, Hq, D], k, v [T, Hkv, D] -> out [T, Hq, D]."""
    length = q.shape[0]
    padding = -length % BUCKET
    if padding:
        q, k, v = (pad(x, (0, 0, 0, 0, 0, padding)) for x in (q, k, v))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        attended = scaled_dot_product_attention(
            *(x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)), is_causal=True, scale=scale, enable_gqa=True
        )
    out.copy_(attended[0].transpose(0, 1)[:length])
