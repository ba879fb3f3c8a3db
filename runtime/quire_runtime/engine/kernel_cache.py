"""Where compiled kernels are kept, so that a later start, perhaps of another replica, finds them."""

import logging
import os
import tempfile
from pathlib import Path

import torch

from quire_api.version import __version__

log = logging.getLogger(__name__)

VARIABLE = "TRITON_CACHE_DIR"
"""Triton reads it whenever it looks for a kernel."""


def folder_of(versions: dict[str, str], architecture: str) -> str:
    """A name for all that kernels depend on, so that what an upgrade leaves behind can be told, and removed."""
    return "-".join([*(f"{name}-{version}" for name, version in versions.items()), architecture])


def use_kernel_cache(directory: str | None, device: torch.device) -> None:
    """Have kernels for `device` kept below `directory`; where it cannot be written, say so and keep them elsewhere."""
    if directory is None or device.type != "cuda":
        return
    import triton

    versions = {"quire": __version__, "torch": torch.__version__, "triton": triton.__version__}
    path = Path(directory) / folder_of(versions, _architecture(device))
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        log.warning("kernels are not kept in %s: %s. Check --kernel-cache", directory, error.strerror or error)
        return
    os.environ[VARIABLE] = str(path)


def _architecture(device: torch.device) -> str:
    if torch.version.hip is not None:
        return str(torch.cuda.get_device_properties(device).gcnArchName).partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
