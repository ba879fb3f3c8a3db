"""Weights from a checkpoint straight into the model's tensors."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from quire_runtime.model.checkpoint import LOAD_FORMATS, Shard, open_shard, weight_files
from quire_runtime.model.decoder import Decoder
from quire_runtime.model.errors import MalformedModel, WeightsMismatch
from quire_runtime.model.layers.weights import Weights

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), from any thread, one call at a time."""

PIECE_BYTES = 64 << 20
NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class LoadReport:
    """`nbytes` is what the model's tensors take on the device, `read_bytes` what was read from files."""

    seconds: float
    nbytes: int
    read_bytes: int


def load_weights(
    model: Decoder,
    directory: str | Path,
    progress: Progress | None = None,
    *,
    load_format: str = "auto",
    seed: int = 0,
) -> LoadReport:
    """Fill the model's tensors from the checkpoint in `directory`, converting to the model's dtype on the way.

    Files are mapped, and threads copy pieces of at most 64 MiB from the mapped pages to their place (a slice, where
    projections are fused), so the host never holds a second copy. Names and shapes are compared with the config before
    the first byte is copied. load_format="dummy" reads nothing and fills with random numbers of `seed`;
    "pt" opens pickles (tensors only).

    Raises:
        MalformedModel: weight files are missing, truncated or damaged.
        WeightsMismatch: tensors are missing, unexpected, of another shape, or quantised.
        PickleRefused: there are only pickles, and nobody asked for them.
    """
    if load_format not in LOAD_FORMATS:
        raise MalformedModel(f"load_format {load_format!r} is not one of {', '.join(LOAD_FORMATS)}.")
    started = time.perf_counter()
    if load_format == "dummy":
        model.weights.fill_randomly(seed)
        return LoadReport(time.perf_counter() - started, model.weights.nbytes, 0)
    directory = Path(directory)
    shards = [open_shard(path) for path in weight_files(directory, load_format)]
    sources = _match(model.weights, shards, directory)
    read_bytes = _copy_all(model.weights, sources, progress)
    return LoadReport(time.perf_counter() - started, model.weights.nbytes, read_bytes)


def _match(weights: Weights, shards: list[Shard], directory: Path) -> dict[str, Tensor]:
    """The checkpoint's tensor for each slot of the model."""
    held: dict[str, Shard] = {}
    for shard in shards:
        for name in shard.names():
            if name in held:
                raise MalformedModel(f"{name} is in both {held[name].path} and {shard.path}. Download the model again.")
            held[name] = shard
    problems = []
    if missing := [name for name in weights.slots if name not in held]:
        problems.append(f"missing: {_some(missing)}")
    if unexpected := [name for name in held if name not in weights.slots and name not in weights.ignored]:
        problems.append(f"not described by config.json: {_some(unexpected)}")
    reshaped = [
        f"{name} has shape {list(shape)} where config.json means {list(slot.shape)}"
        for name, slot in weights.slots.items()
        if name in held and (shape := held[name].shape(name)) != tuple(slot.shape)
    ]
    if reshaped:
        problems.append(_some(reshaped))
    if problems:
        raise WeightsMismatch(
            f"The weights in {directory} do not match its config.json; {'; '.join(problems)}. "
            "Take both from the same revision of the model."
        )
    sources = {name: held[name].tensor(name) for name in weights.slots}
    integers = [name for name, tensor in sources.items() if not tensor.is_floating_point() or tensor.itemsize < 2]
    if integers:
        raise WeightsMismatch(
            f"The weights in {directory} are quantised ({_some(integers)}), which this release cannot run. "
            "Use the model's bfloat16 or float16 variant."
        )
    return sources


def _copy_all(weights: Weights, sources: dict[str, Tensor], progress: Progress | None) -> int:
    total = sum(source.nbytes for source in sources.values())
    done = 0
    lock = threading.Lock()

    def copy(target: Tensor, source: Tensor) -> None:
        nonlocal done
        target.copy_(source)
        with lock:
            done += source.nbytes
            if progress is not None:
                progress(done, total)

    threads = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, thread_name_prefix="load-weights") as pool:
        copies = [
            pool.submit(copy, target, piece)
            for name, source in sources.items()
            for target, piece in _pieces(weights.slots[name], source)
        ]
        finished, waiting = wait(copies, return_when=FIRST_EXCEPTION)
        for one in waiting:
            one.cancel()
        for one in finished:
            one.result()
    return total


def _pieces(target: Tensor, source: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    if source.nbytes <= PIECE_BYTES:
        yield target, source
        return
    rows = max(1, PIECE_BYTES // (source.nbytes // source.shape[0]))
    yield from zip(target.split(rows), source.split(rows), strict=True)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
