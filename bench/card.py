"""What a card allows a decode step: each weight and each key and value read once, or the products' operations."""

from dataclasses import dataclass
from typing import Any

from gpu import CONFIGS

BF16 = 2


@dataclass(frozen=True, slots=True)
class Card:
    """Measured on it with torch alone: bytes/s of a product with one row and of a copy, FLOP/s of large products."""

    read: float
    copy: float
    flops: float


CARDS = {"NVIDIA H200": Card(read=4.45e12, copy=4.27e12, flops=720e12)}
W5_CONTEXT = 512 + 64
"""Keys of a sequence in the middle of W5's 128 tokens."""


def weights(config: dict[str, Any]) -> int:
    """Parameters that a decode step multiplies with: all of a dense model but norms and the input's embedding."""
    hidden, dim = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    layer = hidden * dim * (2 * heads + 2 * kv_heads) + 3 * hidden * config["intermediate_size"]
    return int(config["num_hidden_layers"] * layer + config["vocab_size"] * hidden)


def key_bytes(config: dict[str, Any]) -> int:
    """Of one token's keys and values in all layers."""
    return int(2 * BF16 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"])


def step_ms(card: Card, config: dict[str, Any], batch: int, context: int) -> float:
    """The least a step of `batch` sequences of `context` keys can take in bf16; activations are left out."""
    count = weights(config)
    products = max(BF16 * count / card.read, 2 * count * batch / card.flops)
    return 1e3 * (products + batch * context * key_bytes(config) / card.copy)


def w5_ms(machine: str, model: str, batch: int) -> float | None:
    """Of W5 on the machine of a result's line; None where its card was not measured."""
    card = CARDS.get(machine.partition(",")[0])
    return card and step_ms(card, CONFIGS[model], batch, W5_CONTEXT)
