"""Norm, rotation and store on the GPU: one program a token and a few heads."""

import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.overlap_triton import dependents_may_start, wait_for_inputs

HEADS = 8
WARPS = 4


def rope_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> None:
    """As quire_kernels.rope.rope_and_store."""
    tokens, query_heads, dim = q.shape
    kv_heads, half = k.shape[1], cos_sin.shape[1] // 2
    query_tiles, kv_tiles = triton.cdiv(query_heads, HEADS), triton.cdiv(kv_heads, HEADS)
    _rope_and_store_kernel[(tokens, query_tiles + 2 * kv_tiles)](
        q, k, v, positions, cos_sin, k_cache, v_cache, slots,
        q if q_norm is None else q_norm, k if k_norm is None else k_norm, eps,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2), query_heads, kv_heads,
        DIM=dim, HALF=half, BLOCK_HALF=triton.next_power_of_2(half), REST=dim - 2 * half,
        BLOCK_REST=triton.next_power_of_2(max(dim - 2 * half, 1)), BLOCK=triton.next_power_of_2(dim),
        SIZE=k_cache.shape[2], HEADS=HEADS, Q_TILES=query_tiles, KV_TILES=kv_tiles,
        Q_NORM=q_norm is not None, K_NORM=k_norm is not None, num_warps=WARPS, **tuning.overlapping(tokens),
    )  # fmt: skip


@triton.jit
def _turned(
    at, weight, angles, eps, live,
    DIM: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, REST: tl.constexpr, BLOCK_REST: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """The heads at `at` [H, 1], normed and rotated, in fp32: both turning halves and the dimensions that stay."""
    dims = tl.arange(0, BLOCK_HALF)
    still = 2 * HALF + tl.arange(0, BLOCK_REST)
    inside = live & (dims < HALF)[None, :]
    first = tl.load(at + dims[None, :], mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF + dims[None, :], mask=inside, other=0.0).to(tl.float32)
    rest = tl.load(at + still[None, :], mask=live & (still < DIM)[None, :], other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(first * first + second * second, axis=1) + tl.sum(rest * rest, axis=1)
        scale = tl.rsqrt(squares / DIM + eps)[:, None]
        held = dims < HALF
        first = first * scale * tl.load(weight + dims, mask=held, other=0.0).to(tl.float32)[None, :]
        second = second * scale * tl.load(weight + HALF + dims, mask=held, other=0.0).to(tl.float32)[None, :]
        if REST:
            rest = rest * scale * tl.load(weight + still, mask=still < DIM, other=0.0).to(tl.float32)[None, :]
    cos = tl.load(angles + dims, mask=dims < HALF, other=1.0)[None, :]
    sin = tl.load(angles + HALF + dims, mask=dims < HALF, other=0.0)[None, :]
    return first * cos - second * sin, second * cos + first * sin, rest


@triton.jit
def _put(
    at, first, second, rest, live,
    DIM: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, REST: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    dims = tl.arange(0, BLOCK_HALF)
    inside = live & (dims < HALF)[None, :]
    element = at.dtype.element_ty
    tl.store(at + dims[None, :], first.to(element), mask=inside)
    tl.store(at + HALF + dims[None, :], second.to(element), mask=inside)
    if REST:
        still = 2 * HALF + tl.arange(0, BLOCK_REST)
        tl.store(at + still[None, :], rest.to(element), mask=live & (still < DIM)[None, :])


@triton.jit
def _rope_and_store_kernel(
    q, k, v, positions, cos_sin, k_cache, v_cache, slots, q_norm, k_norm, eps,
    q_token, q_head, k_token, k_head, v_token, v_head, cache_block, cache_head, cache_slot, query_heads, kv_heads,
    DIM: tl.constexpr, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, REST: tl.constexpr, BLOCK_REST: tl.constexpr,
    BLOCK: tl.constexpr, SIZE: tl.constexpr, HEADS: tl.constexpr, Q_TILES: tl.constexpr, KV_TILES: tl.constexpr,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Tiles of heads: queries, keys, values. A thread holds both halves of a pair, so nothing is read after a write."""
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    if OVERLAP:
        dependents_may_start()
    # Positions and slots are older than the first layer's norm, which began when all before it had ended.
    angles = cos_sin + tl.load(positions + token) * (2 * HALF)
    slot = tl.load(slots + token)
    if OVERLAP:
        wait_for_inputs()
    if tile < Q_TILES:
        heads = tile * HEADS + tl.arange(0, HEADS)[:, None]
        live = heads < query_heads
        at = q + token * q_token + heads * q_head
        first, second, rest = _turned(at, q_norm, angles, eps, live, DIM, HALF, BLOCK_HALF, REST, BLOCK_REST, Q_NORM)
        _put(at, first, second, rest, live, DIM, HALF, BLOCK_HALF, REST, BLOCK_REST)
    else:
        place = (slot // SIZE) * cache_block + (slot % SIZE) * cache_slot
        if tile < Q_TILES + KV_TILES:
            heads = (tile - Q_TILES) * HEADS + tl.arange(0, HEADS)[:, None]
            live = heads < kv_heads
            at = k + token * k_token + heads * k_head
            first, second, rest = _turned(
                at, k_norm, angles, eps, live, DIM, HALF, BLOCK_HALF, REST, BLOCK_REST, K_NORM
            )
            _put(at, first, second, rest, live, DIM, HALF, BLOCK_HALF, REST, BLOCK_REST)
            cell = k_cache + place + heads * cache_head
            _put(cell, first, second, rest, live, DIM, HALF, BLOCK_HALF, REST, BLOCK_REST)
        else:
            heads = (tile - Q_TILES - KV_TILES) * HEADS + tl.arange(0, HEADS)[:, None]
            dims = tl.arange(0, BLOCK)[None, :]
            held = (heads < kv_heads) & (dims < DIM)
            values = tl.load(v + token * v_token + heads * v_head + dims, mask=held, other=0.0)
            tl.store(v_cache + place + heads * cache_head + dims, values, mask=held)
