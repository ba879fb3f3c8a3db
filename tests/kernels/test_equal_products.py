"""Faster kernels are taken only for the numbers of rows where they gave the invariant product's bits."""

from collections import Counter

import pytest
import torch

from quire_kernels import equal_products
from quire_kernels.equal_products import WORTH_PARTS, EqualProducts, row_counts
from quire_kernels.invariant_linear import invariant_linear

MOST = 600


@pytest.fixture(autouse=True)
def one_thread():
    """Products of one row are too small for two threads, which on a busy machine would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def taken(monkeypatch):
    """Rows of each call of a kernel that is right for multiples of 16 only, as cuBLAS is before it splits K."""
    rows = []

    def splits(x, weight, bias, out):
        invariant_linear(x, weight, bias, out)
        out[-1, -1] += 1

    def has_no_kernel(x, weight, bias, out):
        pass

    def sixteens(x, weight, bias, out):
        rows.append(len(x))
        invariant_linear(x, weight, bias, out)
        if len(x) % 16:
            out[0, 0] += 1

    monkeypatch.setattr(equal_products, "FASTER", (splits, has_no_kernel, sixteens))
    monkeypatch.setattr(equal_products, "ELEMENTS", 100)  # what is wrong here is wrong each time
    return rows


def operands(rows):
    generator = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((rows, 24), (5, 24), (5,)))
    return x.bfloat16(), weight.bfloat16(), bias.bfloat16()


@pytest.mark.parametrize("has_bias", [False, True])
def test_whatever_the_rows_are_the_bits_are_those_of_the_invariant_product(taken, has_bias):
    x, weight, bias = operands(2 * MOST)
    bias = bias if has_bias else None
    product = EqualProducts()
    product.learn(weight, bias, MOST)
    expected = invariant_linear(x, weight, bias)
    for rows in (0, 1, 15, 16, 17, 100, 255, 256, 257, 300, MOST, MOST + 1, 2 * MOST):
        assert torch.equal(product(x[:rows], weight, bias), expected[:rows]), rows
        out = torch.empty(rows, 5, dtype=x.dtype)
        assert product(x[:rows], weight, bias, out=out) is out
        assert torch.equal(out, expected[:rows]), rows


def test_a_kernel_that_is_nearly_always_equal_is_found_out(monkeypatch):
    """One row of few outputs rounds alike in another order as often as not."""

    def seldom_wrong(x, weight, bias, out):
        invariant_linear(x, weight, bias, out)
        out[:, 0][x[:, 0] > 2.5] += 1

    monkeypatch.setattr(equal_products, "FASTER", (seldom_wrong,))
    monkeypatch.setattr(equal_products, "ELEMENTS", 10_000)
    x, weight, _ = operands(1000)
    product = EqualProducts()
    product.learn(weight, None, 32)
    for row in x[:, None]:
        assert torch.equal(product(row, weight), invariant_linear(row, weight))


def test_zeros_which_are_equal_in_any_order_prove_nothing_for_other_matrices_of_their_shape(monkeypatch):
    def scales(x, weight, bias, out):
        out.copy_(2 * invariant_linear(x, weight, bias))

    monkeypatch.setattr(equal_products, "FASTER", (scales,))
    monkeypatch.setattr(equal_products, "ELEMENTS", 100)
    x, weight, _ = operands(4)
    product = EqualProducts()
    product.learn(torch.zeros_like(weight), None, 4)
    assert torch.equal(product(x, weight), invariant_linear(x, weight))


@pytest.mark.parametrize(
    ("rows", "calls"),
    [
        (16, [16]),
        (17, []),  # one row more would read all weights again
        (WORTH_PARTS, [WORTH_PARTS]),
        (WORTH_PARTS + 15, [WORTH_PARTS]),
        (WORTH_PARTS + 32, [WORTH_PARTS + 32]),
        (576 + 512 + 48, [576, 512, 48]),
        (576 + 512 + 48 + 3, [576, 512]),
    ],
)
def test_a_product_has_few_parts(taken, rows, calls):
    x, weight, _ = operands(rows)
    product = EqualProducts()
    product.learn(weight, None, MOST)
    taken.clear()
    product(x, weight)
    assert taken == calls


def test_products_of_few_outputs_are_not_tried_for_ever(taken, monkeypatch):
    """A result each, a million of them would be a million launches."""
    monkeypatch.setattr(equal_products, "MOST_TIMES", 10)
    _, weight, _ = operands(1)
    EqualProducts().learn(weight, None, 64)
    assert max(Counter(taken).values()) == 10


def test_what_was_not_tried_or_lies_otherwise_is_left_to_the_invariant_product(taken):
    x, weight, bias = operands(32)
    product = EqualProducts()
    product.learn(weight, None, MOST)
    taken.clear()
    other, wide = torch.cat([weight, weight]), torch.cat([x, x], dim=1)[:, :24]
    shifted = torch.empty(32 * 24 + 1, dtype=x.dtype)[1:].view(32, 24).copy_(x)
    for args in ((x, other), (x, weight, bias), (wide, weight), (shifted, weight)):
        assert torch.equal(product(*args), invariant_linear(*args))
    assert taken == []


def test_numbers_of_rows_hold_all_that_graphs_are_padded_to():
    from quire_runtime.execute.graphs import graph_sizes
    from quire_runtime.execute.mixed_graphs import TOKENS

    assert {*graph_sizes(512), *TOKENS} <= set(row_counts(8192))
    assert row_counts(20_000)[-1] == 8192
