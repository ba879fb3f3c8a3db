"""Norm, rotation and store on the GPU: one program a token and head."""

import triton
import triton.language as tl
from torch import Tensor


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
    tokens, query_heads, dim = q.shape
    kv_heads = k.shape[1]
    _rope_and_store_kernel[(tokens, query_heads + 2 * kv_heads)](
        q, k, v, positions, cos_sin, k_cache, v_cache, slots,
        q if q_norm is None else q_norm, k if k_norm is None else k_norm, eps,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2), query_heads, kv_heads,
        DIM=dim, ROTARY=cos_sin.shape[1], BLOCK=triton.next_power_of_2(dim), SIZE=k_cache.shape[2],
        Q_NORM=q_norm is not None, K_NORM=k_norm is not None, num_warps=1,
    )  # fmt: skip


@triton.jit
def _turned(
    x, weight, cos_sin, position, eps, dims, inside, DIM: tl.constexpr, ROTARY: tl.constexpr, NORM: tl.constexpr
):
    """The head at x, normed and rotated, in fp32; each dimension's partner is read from memory a second time."""
    half: tl.constexpr = ROTARY // 2
    rotates = dims < ROTARY
    partners = tl.where(dims < half, dims + half, tl.where(rotates, dims - half, dims))
    own = tl.load(x + dims, mask=inside, other=0.0).to(tl.float32)
    partner = tl.load(x + partners, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(own * own, axis=0) / DIM + eps)
        own = own * scale * tl.load(weight + dims, mask=inside, other=0.0).to(tl.float32)
        partner = partner * scale * tl.load(weight + partners, mask=inside, other=0.0).to(tl.float32)
    angles = cos_sin + position * ROTARY + tl.where(dims < half, dims, dims - half)
    cos = tl.load(angles, mask=rotates, other=1.0)
    sin = tl.load(angles + half, mask=rotates, other=0.0)
    return own * cos + tl.where(dims < half, -partner, partner) * sin


@triton.jit
def _rope_and_store_kernel(
    q, k, v, positions, cos_sin, k_cache, v_cache, slots, q_norm, k_norm, eps,
    q_token, q_head, k_token, k_head, v_token, v_head, cache_block, cache_head, cache_slot, query_heads, kv_heads,
    DIM: tl.constexpr, ROTARY: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
    Q_NORM: tl.constexpr, K_NORM: tl.constexpr,
):  # fmt: skip
    """Heads: queries, keys, values. One warp, so that every partner dimension is read before it is written."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK)
    inside = dims < DIM
    position = tl.load(positions + token)
    if head < query_heads:
        at = q + token * q_token + head * q_head
        turned = _turned(at, q_norm, cos_sin, position, eps, dims, inside, DIM, ROTARY, Q_NORM)
        tl.store(at + dims, turned.to(q.dtype.element_ty), mask=inside)
    else:
        slot = tl.load(slots + token)
        place = (slot // SIZE) * cache_block + (slot % SIZE) * cache_slot
        if head < query_heads + kv_heads:
            which = head - query_heads
            at = k + token * k_token + which * k_head
            turned = _turned(at, k_norm, cos_sin, position, eps, dims, inside, DIM, ROTARY, K_NORM)
            tl.store(at + dims, turned.to(k.dtype.element_ty), mask=inside)
            tl.store(k_cache + place + which * cache_head + dims, turned.to(k_cache.dtype.element_ty), mask=inside)
        else:
            which = head - query_heads - kv_heads
            values = tl.load(v + token * v_token + which * v_head + dims, mask=inside, other=0.0)
            tl.store(v_cache + place + which * cache_head + dims, values, mask=inside)
