"""The cases of `quire_kernels.check` for batch-invariant kernels: right, and the same bits whatever is beside a row."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from quire_kernels.check_attention import Mismatch, expect_close, make_batch, plain_attention, tensors

LENGTH = 200
SPLIT = 128


def cases(full: bool) -> Iterator[tuple[str, Callable[[torch.device], float]]]:
    # The interpreter's products know no bfloat16.
    dtypes = [torch.float32, torch.bfloat16, torch.float16] if full else [torch.float32]
    shapes = [(96, 200), (64, 130)]
    if full:
        shapes += [(1024, 4096), (2048, 1024), (3072, 1024), (4096, 6144), (14336, 4096), (1024, 151936)]
    for dtype, (inputs, outputs), has_bias in itertools.product(dtypes, shapes, (False, True)):
        name = f"invariant product {inputs}x{outputs}{' and bias' if has_bias else ''} {dtype}"
        yield (
            name.replace("torch.", ""),
            partial(_in_order, partial(_run_product, inputs, outputs, has_bias, dtype, full)),
        )
    kinds = [((4, 2, 32), None), ((7, 1, 48), 70)]
    if full:
        heads = [(32, 8, 128), (16, 8, 128), (14, 2, 64), (32, 32, 96), (8, 1, 256)]
        kinds += itertools.product(heads, (None, 70))
    for dtype, (shape, window) in itertools.product(dtypes, kinds):
        name = f"invariant attention {shape[0]}/{shape[1]}x{shape[2]} window {window} {dtype}"
        yield name.replace("torch.", ""), partial(_in_order, partial(_run_attention, *shape, window, dtype))


def _in_order(run: Callable[[torch.device], float], device: torch.device) -> float:
    """In the interpreter with products as a tensor core's: each element a chain of sums over K, whatever the tile."""
    if device.type == "cuda":
        return run(device)
    with _chained_products():
        return run(device)


@contextmanager
def _chained_products() -> Iterator[None]:
    """numpy's own product, which the interpreter takes, sums in another order for another tile."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        total = d.data.copy()
        for k in range(a.data.shape[1]):
            total += a.data[:, k : k + 1] * b.data[k : k + 1]
        return TensorHandle(total, d.dtype.scalar)

    with mock.patch.object(InterpreterBuilder, "create_dot", create_dot):
        yield


def _run_product(
    inputs: int, outputs: int, has_bias: bool, dtype: torch.dtype, full: bool, device: torch.device
) -> float:
    from quire_kernels.invariant_linear_triton import launch, product, tiles

    generator = torch.Generator().manual_seed(0)
    most = 700 if full else 70
    x = torch.randn(most, inputs, generator=generator).to(device, dtype)
    weight = (inputs**-0.5 * torch.randn(outputs, inputs, generator=generator)).to(device, dtype)
    bias = torch.randn(outputs, generator=generator).to(device, dtype) if has_bias else None
    whole = torch.full((most, outputs), torch.nan, dtype=dtype, device=device)
    product(x, weight, bias, whole)
    expected = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    worst = expect_close(whole, expected.cpu())
    for count in (1, 2, 17, 64, 65, 130, 256) if full else (1, 2, 17):
        for begin in {0, (most - count) // 2, most - count}:
            out = torch.empty(count, outputs, dtype=dtype, device=device)
            product(x[begin : begin + count], weight, bias, out)
            _expect_same(out, whole[begin : begin + count], f"{count} rows from row {begin}")
    for tile in tiles(dtype.itemsize):
        out = torch.empty_like(whole)
        launch(x, weight, bias, out, tile)
        _expect_same(out, whole, f"tiles of {tile}")
    return worst


def _run_attention(
    heads: int, kv_heads: int, dim: int, window: int | None, dtype: torch.dtype, device: torch.device
) -> float:
    """One sequence as a whole, in chunks behind a context, and as decodes alone and together."""
    from quire_kernels.invariant_attention_triton import invariant_attention

    whole, blocks = make_batch([(0, LENGTH)], 16, device)
    q, k_cache, v_cache = tensors(whole, blocks, heads, kv_heads, dim, dtype, device)

    def attend(first: int, last: int, spans: list[tuple[int, int]]) -> Tensor:
        batch, _ = make_batch(spans, 16, device)
        width = min(batch.block_tables.shape[1], whole.block_tables.shape[1])
        tables = whole.block_tables[:, :width].expand(len(spans), width).contiguous()
        out = torch.full((last - first, heads, dim), torch.nan, dtype=dtype, device=device)
        invariant_attention(
            q[first:last], k_cache, v_cache, replace(batch, block_tables=tables), dim**-0.5, window, SPLIT, out
        )
        return out

    expected = attend(0, LENGTH, [(0, LENGTH)])
    worst = expect_close(expected, plain_attention(q, k_cache, v_cache, whole, dim**-0.5, window).cpu())
    cuts = [0, 7, 16, 60, 127, LENGTH]
    for begin, end in itertools.pairwise(cuts):
        _expect_same(attend(begin, end, [(begin, end - begin)]), expected[begin:end], f"chunk {begin}..{end}")
    places = list(range(126, 131))
    together = attend(places[0], places[-1] + 1, [(place, 1) for place in places])
    _expect_same(together, expected[places], f"decodes at {places}")
    for place in (0, 63, 64, 127, 128, LENGTH - 1):
        _expect_same(attend(place, place + 1, [(place, 1)]), expected[place : place + 1], f"decode at {place}")
    mixed = attend(LENGTH - 41, LENGTH, [(LENGTH - 41, 1), (LENGTH - 40, 40)])
    _expect_same(mixed, expected[LENGTH - 41 :], "a decode beside a chunk")
    return worst


def _expect_same(actual: Tensor, expected: Tensor, what: str) -> None:
    if not torch.equal(actual, expected):
        off = int((actual != expected).sum())
        raise Mismatch(f"{what}: {off} of {actual.numel()} values depend on what is computed beside them")
