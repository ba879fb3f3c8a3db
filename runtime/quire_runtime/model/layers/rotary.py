"""Tables of the rotary position embedding."""

import math

import torch
from torch import Tensor

from quire_runtime.model.rope import RopeConfig


def cos_sin_table(rope: RopeConfig, positions: int, device: torch.device) -> Tensor:
    """fp32 [positions, rotary_dim]: the cosines of each position, then its sines.

    Computed on the CPU as Transformers computes them, so that the tables are the same on every device.
    """
    if device.type == "meta":
        return torch.empty(positions, rope.rotary_dim, device=device)
    frequencies, scale = inverse_frequencies(rope, positions)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.cos() * scale, angles.sin() * scale], dim=1).to(device)


def inverse_frequencies(rope: RopeConfig, positions: int) -> tuple[Tensor, float]:
    """Radians per position, fp32 [rotary_dim / 2], and the factor on cosines and sines.

    positions: length of the window that will be served; "longrope" chooses its factors by it.
    """
    exponents = torch.arange(0, rope.rotary_dim, 2, dtype=torch.int64).float() / rope.rotary_dim
    plain = 1.0 / rope.theta**exponents
    match rope.kind:
        case "linear":
            return plain / rope.factor, 1.0
        case "llama3":
            return _llama3(rope, plain), 1.0
        case "yarn":
            return _yarn(rope, rope.theta**exponents), _yarn_scale(rope)
        case "longrope":
            factors = rope.long_factor if positions > rope.original_max_positions else rope.short_factor
            return 1.0 / (torch.tensor(factors) * rope.theta**exponents), _longrope_scale(rope)
        case _:
            return plain, 1.0


def _llama3(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between blended."""
    wave_length = 2 * math.pi / plain
    longest_kept = rope.original_max_positions / rope.high_freq_factor
    shortest_slowed = rope.original_max_positions / rope.low_freq_factor
    slowed = torch.where(wave_length > shortest_slowed, plain / rope.factor, plain)
    blend = (rope.original_max_positions / wave_length - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (1 - blend) * slowed / rope.factor + blend * slowed
    is_between = (wave_length >= longest_kept) & (wave_length <= shortest_slowed)
    return torch.where(is_between, blended, slowed)


def _yarn(rope: RopeConfig, wave: Tensor) -> Tensor:
    """YaRN (arXiv 2309.00071): dimensions that turn often are kept, those that turn seldom are interpolated."""

    def dimension_of(rotations: float) -> float:
        return rope.rotary_dim * math.log(rope.original_max_positions / (rotations * 2 * math.pi)) / divisor

    divisor = 2 * math.log(rope.theta)
    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(rope.rotary_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (rope.factor * wave) * (1 - kept) + 1.0 / wave * kept


def _yarn_scale(rope: RopeConfig) -> float:
    def scale(strength: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * strength * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale(1.0)


def _longrope_scale(rope: RopeConfig) -> float:
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.factor <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_positions))
