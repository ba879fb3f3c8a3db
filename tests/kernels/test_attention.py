"""The CPU path of attention against a plain softmax in fp64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_kernels.attention import paged_attention
from quire_kernels.check_attention import expect_close, make_batch, plain_attention, tensors

CPU = torch.device("cpu")
GROUPS = [(4, 4), (4, 2), (8, 2), (7, 1), (8, 1)]


@settings(max_examples=60, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(0, 200), st.one_of(st.just(1), st.integers(1, 40))), min_size=1, max_size=24),
    heads=st.sampled_from(GROUPS),
    window=st.one_of(st.none(), st.integers(1, 60)),
    block_size=st.sampled_from([8, 16, 32]),
    dim=st.sampled_from([16, 32, 80]),
)
def test_any_mixture_of_lengths(spans, heads, window, block_size, dim):
    batch, blocks = make_batch(spans, block_size, CPU)
    q, k_cache, v_cache = tensors(batch, blocks, *heads, dim, torch.float32, CPU)
    out = paged_attention(q, k_cache, v_cache, batch, dim**-0.5, window)
    expect_close(out, plain_attention(q, k_cache, v_cache, batch, dim**-0.5, window))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_summed_in_fp32(dtype):
    batch, blocks = make_batch([(700, 1), (30, 1), (0, 90), (40, 60)], 16, CPU)
    q, k_cache, v_cache = tensors(batch, blocks, 8, 2, 64, dtype, CPU)
    expect_close(
        paged_attention(q, k_cache, v_cache, batch, 0.125, None),
        plain_attention(q, k_cache, v_cache, batch, 0.125, None),
    )


def test_a_long_chunk_behind_a_long_context():
    batch, blocks = make_batch([(1000, 1300), (3, 1)], 16, CPU)
    q, k_cache, v_cache = tensors(batch, blocks, 4, 2, 16, torch.float32, CPU)
    for window in (None, 700):
        expect_close(
            paged_attention(q, k_cache, v_cache, batch, 0.25, window),
            plain_attention(q, k_cache, v_cache, batch, 0.25, window),
        )


def test_the_same_batch_serves_layers_with_and_without_a_window():
    batch, blocks = make_batch([(100, 1), (60, 1), (0, 50)], 16, CPU)
    for window in (None, 20, None):
        q, k_cache, v_cache = tensors(batch, blocks, 4, 2, 32, torch.float32, CPU)
        expect_close(
            paged_attention(q, k_cache, v_cache, batch, 0.2, window),
            plain_attention(q, k_cache, v_cache, batch, 0.2, window),
        )


def test_rows_of_no_sequence_are_left_alone():
    batch, blocks = make_batch([(5, 1), (0, 4)], 16, CPU)
    q, k_cache, v_cache = tensors(batch, blocks, 2, 1, 16, torch.float32, CPU)
    padded = torch.cat((q, q[:1]))
    out = torch.full(padded.shape, 7.0)
    assert paged_attention(padded, k_cache, v_cache, batch, 0.25, None, out) is out
    assert (out[-1] == 7).all()
    assert not (out[:-1] == 7).any()
