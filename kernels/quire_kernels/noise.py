"""Gumbel noise from a stateless counter hash: the same on every device, whatever the batch."""

import torch
from torch import Tensor

GOLDEN = 0x9E3779B9
MULTIPLIER_1 = 0x7FEB352D
MULTIPLIER_2 = 0x846CA68B
"""Constants of the 32-bit mixer "lowbias32" (Chris Wellons, hash-prospector)."""


def gumbel(seeds: Tensor, positions: Tensor, choices: Tensor, vocab: int) -> Tensor:
    """Standard Gumbel noise fp32 [n, vocab] for seeds int64, positions int64 and choices int32, each [n].

    Every value is a function of its row's (seed, position, choice) and its column alone.
    """
    keys = row_keys(seeds, positions, choices)
    ids = torch.arange(vocab, dtype=torch.int32, device=seeds.device)
    bits = _mix((ids * _signed(GOLDEN)).bitwise_xor(keys[:, :1]))
    bits = _mix(bits.add_(keys[:, 1:]))
    # The upper tail of the Gumbel is the lower tail of u, where fp32 is finest.
    u = bits.float().add_(bits.lt(0) * 2.0**32).mul_(2.0**-32).add_(2.0**-33).clamp_max_(1 - 2.0**-24)
    return u.neg_().log1p_().neg_().log_().neg_()


def row_keys(seeds: Tensor, positions: Tensor, choices: Tensor) -> Tensor:
    """Two 32-bit keys for each row, int32 [n, 2]."""
    words = torch.stack((seeds, seeds >> 32, positions, choices.long()), dim=1).bitwise_and_(0xFFFFFFFF)
    low, high, position, choice = (words - ((words >> 31) << 32)).int().unsqueeze(-1).unbind(1)
    key = _mix(low ^ _mix(high + _signed(GOLDEN)))
    key = _mix(key ^ _mix(position + _signed(GOLDEN)))
    key = _mix(key ^ _mix(choice + _signed(GOLDEN)))
    return torch.cat((key, _mix(key + _signed(GOLDEN))), dim=1)


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def _mix(x: Tensor) -> Tensor:
    """lowbias32 on int32 tensors; products wrap, shifts are made logical by masks."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x.mul_(_signed(MULTIPLIER_1))
    x ^= (x >> 15) & 0x1FFFF
    x.mul_(_signed(MULTIPLIER_2))
    x ^= (x >> 16) & 0xFFFF
    return x
