"""The weight files of a model directory."""

import json
import os
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quire_runtime.model.errors import MalformedModel, PickleRefused

LOAD_FORMATS = ("auto", "safetensors", "pt", "dummy")


class Shard(Protocol):
    """One open weight file; tensors are views of its mapped pages, read when they are copied."""

    path: Path

    def names(self) -> Iterable[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> Tensor: ...


class SafetensorsShard:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error

    def names(self) -> Iterable[str]:
        return self._file.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        return self._file.get_tensor(name)


class PickleShard:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            held = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
        except pickle.UnpicklingError as error:
            raise MalformedModel(
                f"{path} is truncated or damaged, or holds more than tensors. Download it again as safetensors."
            ) from error
        except Exception as error:
            raise _damaged(path, error) from error
        if not isinstance(held, dict) or not all(isinstance(item, Tensor) for item in held.values()):
            raise MalformedModel(f"{path} must hold a dictionary of tensors by name.")
        self._tensors: dict[str, Tensor] = held

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def weight_files(directory: Path, load_format: str = "auto") -> list[Path]:
    """The files that hold the weights, in a stable order; an index file decides where there is one.

    load_format: "auto" and "safetensors" look for safetensors, "pt" for PyTorch's pickles.

    Raises:
        MalformedModel: there are none, one cannot be read, or the index is damaged or names a file that is missing.
        PickleRefused: only pickles were found and `load_format` did not ask for them.
    """
    if load_format == "pt":
        files = _listed(directory, "pytorch_model.bin.index.json", "pytorch_model.bin", "pytorch_model*.bin")
    else:
        files = _listed(directory, "model.safetensors.index.json", "model.safetensors", "model*.safetensors")
    for file in files:
        _check_readable(file)
    if files:
        return files
    if load_format != "pt" and any(directory.glob("pytorch_model*.bin")):
        raise PickleRefused(
            f"{directory} holds its weights as Python pickles only, which can run code when opened. "
            "Convert them to safetensors, or pass load_format='pt' if you trust their source."
        )
    kind = "pytorch_model.bin" if load_format == "pt" else "model.safetensors"
    raise MalformedModel(f"{directory} holds no weights ({kind} or its shards). Download the model again.")


def open_shard(path: Path) -> Shard:
    return SafetensorsShard(path) if path.suffix == ".safetensors" else PickleShard(path)


def _listed(directory: Path, index: str, single: str, pattern: str) -> list[Path]:
    if (directory / index).is_file():
        return _indexed(directory / index)
    if (directory / single).is_file():
        return [directory / single]
    return sorted(directory.glob(pattern))


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MalformedModel(f"{index} is damaged ({error!r}). Download it again.") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise MalformedModel(f"{index} names {name!r}, which is not a file of the same directory.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise MalformedModel(
            f"{index.parent} lacks {len(missing)} of {len(names)} weight files, {missing[0]} first. Download it again."
        )
    return [index.parent / name for name in names]


def _check_readable(file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        if file.is_symlink() and not file.exists():
            raise MalformedModel(
                f"{file} is a link to {os.readlink(file)}, which is not there. Copy the model with the files that its "
                "links name, as cp -rL does."
            ) from None
        raise MalformedModel(
            f"{file} cannot be read: {error.strerror}. Check what it is and who may read it."
        ) from None


def _damaged(path: Path, error: Exception) -> MalformedModel:
    detail = str(error).splitlines()[0] if str(error) else type(error).__name__
    return MalformedModel(f"{path} is truncated or damaged ({detail}). Download it again.")
