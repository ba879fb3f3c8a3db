"""What a model's config.json says of its size, known long before its weights are here."""

from pathlib import Path

from quire_api.wire import ModelShape
from quire_runtime.model.config import ModelConfig
from quire_runtime.model.errors import MalformedModel

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def read_shape(directory: Path, weight_bytes: int) -> ModelShape | None:
    """None where config.json makes no sense: the engine, which reads all of it, tells that better.

    Raises:
        UnsupportedArchitecture: no engine of this release could run the model, so nobody need wait for its weights.
    """
    try:
        config = ModelConfig.from_directory(directory)
    except MalformedModel:
        return None
    return ModelShape(
        architecture=config.architecture,
        weight_bytes=weight_bytes,
        value_bytes=DTYPE_BYTES[config.dtype],
        kv_values_per_token=2 * config.num_layers * config.num_kv_heads * config.head_dim,
        max_positions=config.max_position_embeddings,
    )
