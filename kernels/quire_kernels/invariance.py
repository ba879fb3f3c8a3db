"""Asks a GPU whether the batch-invariant kernels are that on it: what no documentation of tensor cores promises."""

from dataclasses import replace

import torch
from torch import Tensor

from quire_kernels.check_attention import make_batch, tensors

ROWS = 300
OUTPUTS = 1024


def products_agree(weight: Tensor, bias: Tensor | None) -> bool:
    """Do all tiles give a row the same bits, beside 299 others and alone? weight [N, K], bias [N] on a CUDA device."""
    from quire_kernels.invariant_linear_triton import launch, tiles

    generator = torch.Generator(weight.device).manual_seed(0)
    x = torch.randn(ROWS, weight.shape[1], generator=generator, device=weight.device).to(weight.dtype)
    some, bias = weight[:OUTPUTS], None if bias is None else bias[:OUTPUTS]
    found = []
    for tile in tiles(x.dtype.itemsize):
        whole = torch.empty(ROWS, len(some), dtype=x.dtype, device=x.device)
        alone = torch.empty(1, len(some), dtype=x.dtype, device=x.device)
        launch(x, some, bias, whole, tile)
        launch(x[137:138], some, bias, alone, tile)
        found += [whole, alone.expand(ROWS, -1)]
    return all(_are_same(one[137], found[0][137]) for one in found) and all(
        _are_same(one, found[0]) for one in found[::2]
    )


def attention_agrees(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype, window: int | None, device: torch.device
) -> bool:
    """Do queries find the same in a whole prompt, in a chunk and as decodes?"""
    from quire_kernels.invariant_attention_triton import invariant_attention

    whole, blocks = make_batch([(0, ROWS)], 16, device)
    q, k_cache, v_cache = tensors(whole, blocks, heads, kv_heads, dim, dtype, device)

    def attend(first: int, spans: list[tuple[int, int]]) -> Tensor:
        batch, _ = make_batch(spans, 16, device, spare_columns=0)
        tables = whole.block_tables[:, : batch.block_tables.shape[1]].expand(len(spans), -1).contiguous()
        count = sum(queries for _, queries in spans)
        out = torch.empty(count, heads, dim, dtype=dtype, device=device)
        own = replace(batch, block_tables=tables)
        invariant_attention(q[first : first + count], k_cache, v_cache, own, dim**-0.5, window, 128, out)
        return out

    expected = attend(0, [(0, ROWS)])
    decodes = attend(250, [(place, 1) for place in range(250, 260)])
    return _are_same(attend(201, [(201, 99)]), expected[201:]) and _are_same(decodes, expected[250:260])


def _are_same(a: Tensor, b: Tensor) -> bool:
    bits = torch.int32 if a.dtype.itemsize == 4 else torch.int16
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))
