"""A decoder on a CPU, token by token: what a token becomes cannot depend on the tokens beside it.

Vector loops, BLAS and softmax choose their order by the shape they are given, down to the last row of a block. Here
every shape is that of one token at its position, in its own memory.
"""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from quire_kernels.attention import paged_attention
from quire_kernels.batch import AttentionBatch
from quire_kernels.norm import rms_norm
from quire_runtime.model.config import ModelConfig
from quire_runtime.model.layers.layer import Layer


class DecoderParts(Protocol):
    """What is used of a quire_runtime.model.decoder.Decoder."""

    config: ModelConfig
    dtype: torch.dtype
    embedding: Tensor
    layers: list[Layer]
    final_norm: Tensor
    cos_sin: Tensor


def forward_apart(
    decoder: DecoderParts, token_ids: Tensor, kv: list[tuple[Tensor, Tensor]], batch: AttentionBatch
) -> Tensor:
    """Decoder.forward: token_ids int64 [T] -> hidden states [T, hidden_size]; fills `kv` at `batch.slots`."""
    eps = decoder.config.rms_norm_eps
    batches = one_token_batches(batch)
    residuals = [functional.embedding(token, decoder.embedding) for token in token_ids.split(1)]
    for layer, (k_cache, v_cache) in zip(decoder.layers, kv, strict=True):
        attention = layer.attention
        queries = []
        for residual, own in zip(residuals, batches, strict=True):
            heads = attention.qkv(rms_norm(residual, layer.attention_norm, eps))
            queries.append(attention.store(heads, k_cache, v_cache, own, decoder.cos_sin)[0].clone())
        # Only now: a token may see keys of another sequence's prompt that this very step computes.
        for query, residual, own in zip(queries, residuals, batches, strict=True):
            attended = paged_attention(query, k_cache, v_cache, own, attention.head_dim**-0.5, attention.window)
            residual += attention.output(attended.flatten(1))
            residual += layer.mlp(rms_norm(residual, layer.mlp_norm, eps))
    if not residuals:
        return torch.empty(0, decoder.config.hidden_size, dtype=decoder.dtype)
    return torch.cat([rms_norm(residual, decoder.final_norm, eps) for residual in residuals])


def one_token_batches(batch: AttentionBatch) -> list[AttentionBatch]:
    """Each query token of a batch as a decode of its own."""
    batches = []
    for sequence, length in enumerate(batch.seq_lens_cpu):
        start, end = batch.query_starts_cpu[sequence : sequence + 2]
        for token in range(start, end):
            seen = length - (end - 1 - token)
            batches.append(
                replace(
                    batch,
                    positions=batch.positions[token : token + 1],
                    slots=batch.slots[token : token + 1],
                    query_starts=torch.tensor([0, 1], dtype=torch.int32),
                    seq_lens=torch.tensor([seen], dtype=torch.int32),
                    block_tables=batch.block_tables[sequence : sequence + 1],
                    num_decodes=1,
                    query_starts_cpu=[0, 1],
                    seq_lens_cpu=[seen],
                    step_work={},
                    shared=None,
                )
            )
    return batches
