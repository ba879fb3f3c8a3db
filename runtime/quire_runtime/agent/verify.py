"""Whether a directory that somebody else filled holds a whole model."""

import json
import struct
from pathlib import Path

from quire_runtime.agent.errors import WeightsCorrupt, WeightsNotFound

LONGEST_HEADER = 100 << 20


def verify_model(directory: Path, source: object, *, allow_pickle: bool = False) -> int:
    """The bytes of its weights. Reads no more of them than their headers.

    Raises:
        WeightsNotFound: no such directory, no config.json, no weights, or not all files of the index.
        WeightsCorrupt: a file of weights is cut short.
    """
    if not directory.is_dir():
        state = "is not a directory" if directory.exists() else "does not exist"
        raise WeightsNotFound(f"{source}: {directory} {state}. Check the path, and what the volume holds.")
    if not (directory / "config.json").is_file():
        raise WeightsNotFound(f"{source}: there is no config.json in {directory}. Name the model's own folder.")
    weights = _weights(directory, source, allow_pickle)
    for path in weights:
        if path.suffix == ".safetensors":
            _verify_length(path, source)
    return sum(path.stat().st_size for path in weights)


def _weights(directory: Path, source: object, allow_pickle: bool) -> list[Path]:
    kinds = [("model.safetensors.index.json", "model*.safetensors")]
    if allow_pickle:
        kinds.append(("pytorch_model.bin.index.json", "pytorch_model*.bin"))
    for index, pattern in kinds:
        if (directory / index).is_file():
            names = _shards(directory / index, source)
            if missing := [name for name in names if not (directory / name).is_file()]:
                raise WeightsNotFound(
                    f"{source}: {len(missing)} of {len(names)} files that {index} names are missing, "
                    f"{missing[0]} among them. Copy the model anew."
                )
            return [directory / name for name in names]
        if found := sorted(directory.glob(pattern)):
            return found
    raise WeightsNotFound(f"{source} holds no safetensors weights. Name a model in Hugging Face format.")


def _shards(index: Path, source: object) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise WeightsCorrupt(f"{source}: {index.name} cannot be understood. Copy the model anew.") from None


def _verify_length(path: Path, source: object) -> None:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(LONGEST_HEADER, size):
                raise ValueError
            header = json.loads(file.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error):
        raise WeightsCorrupt(f"{source}: {path.name} is no safetensors file. Copy the model anew.") from None
    if 8 + length + end != size:
        raise WeightsCorrupt(
            f"{source}: {path.name} has {size} bytes and should have {8 + length + end}. Copy the model anew."
        )
