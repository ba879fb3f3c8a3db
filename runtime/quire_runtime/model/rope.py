"""Rotary position embedding as config.json describes it."""

from dataclasses import dataclass

from quire_runtime.model.errors import MalformedModel, UnsupportedArchitecture
from quire_runtime.model.fields import Fields

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Frequencies of the rotation over the first `rotary_dim` dimensions of a head.

    `kind` is Transformers' rope_type. "dynamic" equals "default" within max_position_embeddings, beyond which no
    request goes. "longrope" has two sets of factors: a run whose window ends within `original_max_positions` uses the
    short ones, any other the long ones, so that cached keys always agree with one another.
    """

    kind: str
    theta: float
    rotary_dim: int
    factor: float = 1.0
    original_max_positions: int = 0
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @classmethod
    def from_fields(cls, config: Fields, head_dim: int, max_positions: int) -> "RopeConfig":
        """Read the layout of Transformers 5 (`rope_parameters`) or 4 (`rope_theta`, `rope_scaling`).

        Raises:
            UnsupportedArchitecture: the kind is none of KINDS, or differs from layer to layer.
            MalformedModel: a value is missing or absurd.
        """
        rope = config.object("rope_parameters" if config.has("rope_parameters") else "rope_scaling")
        if any(isinstance(value, dict) for value in rope.values.values()):
            raise UnsupportedArchitecture(f"{rope.where} differs from layer to layer, which this release cannot run.")
        kind = _kind(config, rope)
        theta = rope.real("rope_theta") if rope.has("rope_theta") else config.real("rope_theta", 10000.0)
        partial = (rope if rope.has("partial_rotary_factor") else config).real("partial_rotary_factor", 1.0)
        rotary_dim = int(head_dim * partial)
        if partial > 1.0 or rotary_dim < 2 or rotary_dim % 2:
            raise MalformedModel(
                f"{rope.where}: partial_rotary_factor {partial:g} of a head of {head_dim} must give an even number of "
                f"dimensions from 2 to {head_dim}; it gives {rotary_dim}."
            )
        if kind in ("default", "dynamic"):
            return cls(kind, theta, rotary_dim)
        if kind == "linear":
            return cls(kind, theta, rotary_dim, factor=rope.real("factor"))
        # Phi-3 keeps the trained length beside the rope parameters; where both are given, that one counts.
        trained = config if config.has("original_max_position_embeddings") else rope
        original = trained.whole("original_max_position_embeddings", max_positions)
        attention_factor = rope.real("attention_factor") if rope.has("attention_factor") else None
        factor = rope.real("factor", max_positions / original)
        if kind == "longrope":
            return cls(
                kind,
                theta,
                rotary_dim,
                factor=factor,
                original_max_positions=original,
                attention_factor=attention_factor,
                short_factor=_factors(rope, "short_factor", rotary_dim),
                long_factor=_factors(rope, "long_factor", rotary_dim),
            )
        if kind == "llama3":
            low, high = rope.real("low_freq_factor"), rope.real("high_freq_factor")
            if low >= high:
                raise MalformedModel(f"{rope.where}: low_freq_factor must be below high_freq_factor.")
            return cls(
                kind,
                theta,
                rotary_dim,
                factor=factor,
                original_max_positions=original,
                low_freq_factor=low,
                high_freq_factor=high,
            )
        return cls(
            kind,
            theta,
            rotary_dim,
            factor=factor,
            original_max_positions=original,
            attention_factor=attention_factor,
            beta_fast=rope.real("beta_fast", 32.0),
            beta_slow=rope.real("beta_slow", 1.0),
            mscale=rope.real("mscale") if rope.has("mscale") else None,
            mscale_all_dim=rope.real("mscale_all_dim") if rope.has("mscale_all_dim") else None,
            truncate=rope.flag("truncate", True),
        )


def _kind(config: Fields, rope: Fields) -> str:
    kind = rope.text("rope_type", rope.text("type", "default"))
    if config.values.get("model_type") == "phi3" and kind in ("su", "yarn"):
        kind = "longrope"
    if kind not in KINDS:
        raise UnsupportedArchitecture(f"{rope.where}: rope type {kind!r} is not one of {', '.join(KINDS)}.")
    return kind


def _factors(rope: Fields, name: str, rotary_dim: int) -> tuple[float, ...]:
    factors = rope.reals(name)
    if len(factors) != rotary_dim // 2:
        raise MalformedModel(f"{rope.where}: {name} must hold {rotary_dim // 2} numbers; it holds {len(factors)}.")
    return factors
