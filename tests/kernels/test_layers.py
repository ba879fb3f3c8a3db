"""Norms, activation and rotation beside Transformers' own."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from quire_kernels.activation import silu_and_mul
from quire_kernels.norm import add_rms_norm, rms_norm
from quire_kernels.rope import rope_and_store


def test_rms_norm_is_llamas():
    x, layer = torch.randn(7, 48), LlamaRMSNorm(48, eps=1e-5)
    layer.weight.data = torch.randn(48)
    torch.testing.assert_close(rms_norm(x, layer.weight.data, 1e-5), layer(x).detach())


def test_add_rms_norm_keeps_the_sum_as_the_residual():
    x, residual, weight = torch.randn(3, 32), torch.randn(3, 32), torch.randn(32)
    total = x + residual
    add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(residual, total)
    torch.testing.assert_close(x, rms_norm(total, weight, 1e-6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silu_and_mul(dtype):
    x = torch.randn(5, 64).to(dtype)
    gate, up = x.float().chunk(2, dim=1)
    expected = (torch.nn.functional.silu(gate) * up).to(dtype)
    assert torch.equal(silu_and_mul(x), expected)


@pytest.mark.parametrize("fused", [True, False], ids=["views of one projection", "apart"])
@pytest.mark.parametrize("has_norm", [True, False])
def test_rotation_is_transformers_and_keys_reach_their_slots(fused, has_norm):
    tokens, heads, kv_heads, dim, size = 6, 4, 2, 32, 8
    qkv = torch.randn(tokens, heads + 2 * kv_heads, dim)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    if not fused:
        q, k, v = q.clone(), k.clone(), v.clone()
    norms = [LlamaRMSNorm(dim, eps=1e-6) for _ in range(2)] if has_norm else [torch.nn.Identity()] * 2
    weights = []
    for norm in norms:
        if has_norm:
            norm.weight.data = torch.rand(dim)
        weights.append(norm.weight.data if has_norm else None)
    positions = torch.tensor([0, 5, 63, 17, 2, 1])
    angles = torch.arange(64)[:, None] * 10000.0 ** -(torch.arange(0, dim, 2) / dim)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    full = torch.cat((angles, angles), dim=1)[positions].unsqueeze(0)
    expected = apply_rotary_pos_emb(
        norms[0](q).transpose(0, 1).unsqueeze(0), norms[1](k).transpose(0, 1).unsqueeze(0), full.cos(), full.sin()
    )
    expected_q, expected_k = (x[0].transpose(0, 1).detach() for x in expected)
    values = v.clone()
    slots = torch.tensor([9, 8, 31, 12, 40, 47])
    k_cache, v_cache = torch.zeros(6, kv_heads, size, dim), torch.zeros(6, kv_heads, size, dim)

    rope_and_store(q, k, v, positions, cos_sin, k_cache, v_cache, slots, *weights, eps=1e-6)

    torch.testing.assert_close(q, expected_q)
    torch.testing.assert_close(k, expected_k)
    assert torch.equal(v, values)
    for token, slot in enumerate(slots.tolist()):
        assert torch.equal(k_cache[slot // size, :, slot % size], k[token])
        assert torch.equal(v_cache[slot // size, :, slot % size], v[token])
    assert int((k_cache != 0).any(dim=-1).sum()) == tokens * kv_heads


def test_only_the_first_dimensions_turn_when_the_table_is_narrow():
    q, k, v = torch.randn(3, 2, 16), torch.randn(3, 1, 16), torch.randn(3, 1, 16)
    before = q.clone()
    cache = torch.zeros(1, 1, 4, 16)
    table = torch.tensor([[0.6, 0.6, 0.8, 0.8]])
    rope_and_store(q, k, v, torch.zeros(3).long(), table, cache, cache.clone(), torch.arange(3))
    assert torch.equal(q[..., 4:], before[..., 4:])
    torch.testing.assert_close(q[..., 0], 0.6 * before[..., 0] - 0.8 * before[..., 2])
    torch.testing.assert_close(q[..., 2], 0.6 * before[..., 2] + 0.8 * before[..., 0])
