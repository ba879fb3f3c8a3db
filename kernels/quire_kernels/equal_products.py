"""The batch-invariant product by faster kernels, wherever they give the same bits.

On Hopper a product that does not split K is, for each element, one chain of a tensor core's sums, in cuBLAS's kernels
as in ours. No library promises that, and which kernel it takes depends on the number of rows: so each number that steps
may have is tried for each matrix before anything is served, and our own kernel does the rest.
"""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.invariant_linear import invariant_linear
from quire_kernels.linear import few_rows_linear, lt_linear, skinny_linear

Fill = Callable[[Tensor, Tensor, Tensor | None, Tensor], object]
"""(x [T, K], weight [N, K], bias [N] or None, out [T, N]) fills out, or leaves it where there is no such kernel."""
FASTER: tuple[Fill, ...] = (skinny_linear, lt_linear, few_rows_linear)
"""In the order in which they are tried: what an engine takes that is not deterministic, then what splits K less."""
MOST = 8192
"""Rows of the largest product that is tried."""
WORTH_PARTS = 256
"""Rows from which a product may be followed by one of the rest, which reads all weights again."""
ELEMENTS = 1 << 20
"""Results that a number of rows is tried with: where K was split, 4 to 7 in a thousand differed on an H200."""
MOST_TIMES = 1024
"""That a number of rows is tried, though results be fewer: where outputs are few, they take as many launches."""
ALIGNED = 16
"""Bytes; of other addresses cuBLAS may take another kernel."""


def row_counts(most: int) -> list[int]:
    """Numbers of rows that are tried, ascending: those that CUDA graphs are padded to, and multiples of 256."""
    counts = [1, 2, 4, *range(8, 512, 8), *range(512, 1024, 64), *range(1024, MOST + 1, 256)]
    return [count for count in counts if count <= most]


@dataclass(frozen=True, slots=True)
class _Equal:
    """Numbers of rows, ascending, and for each of them what gives the invariant product's bits."""

    counts: list[int]
    fills: list[Fill]


class EqualProducts:
    """`invariant_linear`, bit by bit, by the fastest kernels known to be equal for the matrices that were tried."""

    def __init__(self) -> None:
        self._equal: dict[tuple[torch.Size, bool], _Equal] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """x [T, K] @ weight [N, K].T + bias [N] -> [T, N], or fills `out`."""
        equal = self._equal.get((weight.shape, bias is not None))
        if equal is None:
            return invariant_linear(x, weight, bias, out)
        out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device) if out is None else out
        at, end = 0, x.shape[0]
        while at < end and _is_plain(x) and _is_plain(out):
            index = bisect_right(equal.counts, end - at) - 1
            count = equal.counts[index] if index >= 0 else 0
            if count < min(end - at, WORTH_PARTS):
                break
            equal.fills[index](x[at : at + count], weight, bias, out[at : at + count])
            at += count
        if at < end:
            invariant_linear(x[at:], weight, bias, out[at:])
        return out

    def rehearse(self, weight: Tensor, bias: Tensor | None) -> None:
        """Launch what `learn` will, with few rows; more rows have no kernels of ours but the invariant one."""
        for count in row_counts(WORTH_PARTS):
            x, out = weight.new_zeros(count, weight.shape[1]), weight.new_empty(count, weight.shape[0])
            for fill in FASTER:
                fill(x, weight, bias, out)

    def learn(self, weight: Tensor, bias: Tensor | None, most: int) -> None:
        """Try row_counts(most) with weight [N, K] and bias [N], for all matrices of that shape.

        Of a weight of zeros nothing is learned: any order of its sums is equal. Takes memory for most times 2 * N + K
        or 3 * K elements meanwhile, whichever is more, or for ELEMENTS results and what they are computed from.
        """
        if not weight.any():
            return
        outputs, inputs = weight.shape
        generator = torch.Generator(weight.device).manual_seed(0)
        rows = max(min(most, MOST), min(-(-ELEMENTS // outputs), MOST_TIMES))
        x = torch.randn(rows, inputs, generator=generator, device=weight.device).to(weight.dtype)
        expected = invariant_linear(x, weight, bias)
        found = torch.empty_like(expected)
        counts, fills = [], []
        for count in row_counts(most):
            # Of two orders of a sum most results round alike: it takes many to tell one from the other.
            tried = min(rows // count, -(-ELEMENTS // (count * outputs)), MOST_TIMES) * count
            for fill in FASTER:
                found[:tried].fill_(torch.nan)
                for at in range(0, tried, count):
                    fill(x[at : at + count], weight, bias, found[at : at + count])
                if _same_bits(found[:tried], expected[:tried]):
                    counts.append(count)
                    fills.append(fill)
                    break
        self._equal[weight.shape, bias is not None] = _Equal(counts, fills)


def has_equal_products(weight: Tensor) -> bool:
    """Is anything to be gained by `learn`? On Hopper; other GPUs' libraries were not tried."""
    return weight.is_cuda and weight.dtype.itemsize == 2 and tuning.architecture() == "cuda:90"


def _is_plain(tensor: Tensor) -> bool:
    """Do tensors like those that were tried have its strides and alignment?"""
    return tensor.is_contiguous() and tensor.data_ptr() % ALIGNED == 0


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int16), b.view(torch.int16))
