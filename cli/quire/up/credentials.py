"""What a model's Secret becomes in the environment of whoever fetches the model."""

from collections.abc import Mapping
from pathlib import Path

from quire_operator.credentials import REGISTRY_CONFIG, VARIABLES


def source_environment(secret: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Variables for the keys that the Secret has; a registry's configuration goes into `folder`, for its owner only."""
    environment = {name: secret[key] for key, name in VARIABLES.items() if secret.get(key)}
    if REGISTRY_CONFIG in secret:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "config.json"
        path.touch(mode=0o600)
        path.write_text(secret[REGISTRY_CONFIG])
        environment["DOCKER_CONFIG"] = str(folder)
    return environment
