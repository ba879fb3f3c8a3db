"""Where a model's files are on this machine."""

import os
from pathlib import Path

from quire_runtime.config import EngineConfig


def model_directory(config: EngineConfig) -> Path:
    """The local directory of the model; fetched first where the source is remote.

    Raises:
        UserError: it cannot be fetched.
    """
    if os.path.isdir(config.model):
        return Path(config.model)
    from quire_runtime.agent.fetch import fetch_model

    pickles = config.load_format == "pt"
    return fetch_model(config.model, config.revision, cache_dir=config.download_dir, allow_pickle=pickles)
