"""Memory that steps take and one measured step does not show, in bytes."""

import torch

from quire_kernels.fresh_attention import BUCKET, FROM, TOKENS
from quire_kernels.invariant_attention import split_for
from quire_runtime.execute.graphs import graph_sizes
from quire_runtime.execute.mixed_graphs import sequence_sizes
from quire_runtime.model.config import ModelConfig


def padded_prompts(model: ModelConfig, dtype: torch.dtype, tokens: int) -> int:
    """All activations of a step of `tokens` tokens while cuDNN attends to its prompts, each padded as far as it may be.

    A step of prompts that need no padding has less at that moment, and perhaps more in its MLPs.
    """
    padded = min(tokens + tokens // FROM * (BUCKET - 1), TOKENS) if tokens >= FROM else 0
    heads = model.num_heads * model.head_dim
    around = tokens * (2 * model.hidden_size + model.qkv_size + heads)
    return (around + padded * (model.qkv_size + heads)) * dtype.itemsize


def decode_sums(model: ModelConfig, max_num_seqs: int, window: int, block_size: int, *, graphs: bool) -> int:
    """What splits of decodes find in a deterministic engine: of one eager step, and of every graph.

    Graphs of one kind share a pool, but a larger one cannot always take the place of smaller ones.
    """
    keys = -(-(window + 1) // block_size) * block_size
    splits = -(-keys // split_for(window))
    each = 4 * (model.num_heads * splits * (model.head_dim + 2) + model.num_kv_heads)
    sizes = graph_sizes(max_num_seqs) if graphs else []
    recorded = sum(sizes) + sum(sequence_sizes(sizes[-1])) if sizes else 0
    return (max_num_seqs + recorded) * each
