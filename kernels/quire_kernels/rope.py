"""Per-head norm of queries and keys, rotary embedding and the store into the paged cache, in one."""

from torch import Tensor

from quire_kernels.norm import rms_norm_reference


def rope_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slots: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> None:
    """Norm (where weights are given) and rotate q and k in place, then write k and v to the caches at `slots`.

    q: [T, Hq, D], k, v: [T, Hkv, D], heads contiguous, rows strided (views of one fused projection).
    positions, slots: int64 [T]; cos_sin: fp32 [max_pos, R], R <= D: cosines of the R / 2 angles, then their sines.
    Pairs (i, i + R / 2) of the first R dimensions turn together; the other D - R stay. q_norm, k_norm: [D].
    k_cache, v_cache: [num_blocks, Hkv, block_size, D]; slot = block * block_size + offset.
    Computed in fp32; between the norm and the rotation nothing is rounded.
    """
    if q.is_cuda:
        from quire_kernels import rope_triton

        rope_triton.rope_and_store(q, k, v, positions, cos_sin, k_cache, v_cache, slots, q_norm, k_norm, eps)
    else:
        rope_and_store_reference(q, k, v, positions, cos_sin, k_cache, v_cache, slots, q_norm, k_norm, eps)


def rope_and_store_reference(
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
    """As `rope_and_store`."""
    angles = cos_sin.index_select(0, positions).unsqueeze(1)
    if q_norm is None and k_norm is None and _are_neighbours(q, k):
        _turn(q.as_strided((q.shape[0], q.shape[1] + k.shape[1], q.shape[2]), q.stride()), angles, None, eps)
    else:
        _turn(q, angles, q_norm, eps)
        _turn(k, angles, k_norm, eps)
    size = k_cache.shape[2]
    block, offset = slots // size, slots % size
    k_cache[block, :, offset] = k.to(k_cache.dtype)
    v_cache[block, :, offset] = v.to(v_cache.dtype)


def _are_neighbours(q: Tensor, k: Tensor) -> bool:
    """Is k, in memory, simply the heads after q's?"""
    return q.stride() == k.stride() and k.data_ptr() == q.data_ptr() + q.shape[1] * q.stride(1) * q.element_size()


def _turn(x: Tensor, angles: Tensor, norm: Tensor | None, eps: float) -> None:
    wide = x.float()
    if norm is not None:
        wide = rms_norm_reference(wide, norm.float(), eps)
    half = angles.shape[-1] // 2
    cos, sin = angles[..., :half], angles[..., half:]
    first, second = wide[..., :half], wide[..., half : 2 * half]
    first_sin, second_sin = first * sin, second * sin
    first.mul_(cos).sub_(second_sin)
    second.mul_(cos).add_(first_sin)
    if wide is not x:
        x.copy_(wide)
