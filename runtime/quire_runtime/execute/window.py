"""The longest sequence that may be asked for: known from config.json alone, without torch."""

from quire_runtime.config import EngineConfig
from quire_runtime.model.config import ModelConfig
from quire_runtime.model.errors import DoesNotFit


def require_window(config: EngineConfig, model: ModelConfig) -> None:
    """
    Raises:
        DoesNotFit: a longer window was asked for than the model has positions.
    """
    longest = model.max_position_embeddings
    if not isinstance(config.max_model_len, str) and config.max_model_len > longest:
        raise DoesNotFit(
            f"{config.model}: max_model_len {config.max_model_len} is above the model's own limit of {longest} "
            "positions. Lower max_model_len."
        )
