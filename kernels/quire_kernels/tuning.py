"""Launch shapes by GPU, as data; nothing is tuned while serving.

Architectures are named as in `quire_kernels.aot.TARGETS` ("cuda:90", "hip:gfx942"). A shape is looked up for the
architecture, then for its kind ("cuda", "hip").
"""

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True, slots=True)
class Tile:
    """rows: query rows of a program (tokens times the heads of a group); keys: keys read at once; programs: of a
    persistent grid, on one multiprocessor."""

    rows: int
    keys: int
    warps: int
    stages: int
    programs: int = 3


# By (architecture or kind of GPU, bytes of an element, largest padded head dimension). Without an asynchronous matrix
# unit the accumulators of 64 rows and 4 warps spill: 8 warps share them.
PREFILL = {
    ("cuda:80", 2, 64): Tile(128, 64, 8, 3),
    ("cuda:80", 2, 128): Tile(64, 64, 8, 2),
    ("cuda:80", 2, 256): Tile(64, 32, 8, 2),
    ("cuda", 2, 64): Tile(128, 64, 4, 3),
    ("cuda", 2, 128): Tile(64, 64, 4, 2),
    ("cuda", 2, 256): Tile(64, 32, 4, 2),
    ("cuda", 4, 64): Tile(64, 32, 4, 1),
    ("cuda", 4, 128): Tile(32, 32, 4, 1),
    ("cuda", 4, 256): Tile(16, 16, 4, 1),
    ("hip", 2, 128): Tile(128, 32, 4, 1),
    ("hip", 2, 256): Tile(64, 32, 4, 1),
    ("hip", 4, 128): Tile(32, 32, 4, 1),
    ("hip", 4, 256): Tile(16, 16, 4, 1),
}
# Rows are the heads of a group, padded to 16. Up to FEW sequences.
DECODE = {
    ("cuda", 2, 128): Tile(16, 32, 4, 3, 6),
    ("cuda", 2, 256): Tile(16, 32, 4, 2),
    ("cuda", 4, 128): Tile(16, 32, 4, 2),
    ("cuda", 4, 256): Tile(16, 16, 4, 1),
    ("hip", 2, 128): Tile(16, 64, 4, 1),
    ("hip", 2, 256): Tile(16, 32, 4, 1),
    ("hip", 4, 128): Tile(16, 32, 4, 1),
    ("hip", 4, 256): Tile(16, 16, 4, 1),
}
FEW = 16
# More than FEW: `programs` should all have room at a time, for none of them waits for another one's end.
BALANCED = DECODE | {("cuda", 2, 128): Tile(16, 64, 4, 3, 3)}
# Of keys that many decodes share.
SHARED = PREFILL | {(kind, 2, dim): Tile(64, 64, 4, 3) for kind in ("cuda:80", "cuda") for dim in (64, 128)}
# Decodes and prefills of quire_kernels.invariant_attention_triton: one shape for both, since keys and warps decide the
# order of a row's sums.
INVARIANT = {
    ("cuda:80", 2, 128): Tile(64, 64, 8, 3),
    ("cuda:90", 2, 128): Tile(64, 32, 4, 4),
    ("cuda:100", 2, 128): Tile(64, 64, 8, 3),
    ("cuda", 2, 64): Tile(64, 64, 4, 3),
    ("cuda", 2, 128): Tile(64, 64, 4, 3),
    ("cuda", 2, 256): Tile(64, 32, 8, 2),
    ("cuda", 4, 64): Tile(32, 32, 4, 1),
    ("cuda", 4, 128): Tile(32, 32, 4, 1),
    ("cuda", 4, 256): Tile(16, 16, 4, 1),
    ("hip", 2, 128): Tile(64, 32, 4, 1),
    ("hip", 2, 256): Tile(64, 32, 4, 1),
    ("hip", 4, 128): Tile(32, 32, 4, 1),
    ("hip", 4, 256): Tile(16, 16, 4, 1),
}
TABLES = {
    "prefill": PREFILL,
    "decode": DECODE,
    "balanced": BALANCED,
    "shared": SHARED,
    "invariant": INVARIANT,
}


@cache
def architecture() -> str:
    """Of the current GPU; Triton's interpreter counts as "cuda"."""
    if not torch.cuda.is_available():
        return "cuda"
    if torch.version.hip:
        return f"hip:{torch.cuda.get_device_properties().gcnArchName.split(':')[0]}"
    major, minor = torch.cuda.get_device_capability()
    return f"cuda:{major}{minor}"


@cache
def processors() -> int:
    """Streaming multiprocessors of the current GPU."""
    return torch.cuda.get_device_properties().multi_processor_count if torch.cuda.is_available() else 1


OVERLAPPED = 512
"""Rows up to which kernels overlap. On an H200 it takes 1 to 3 % from decode steps of 64 to 256 rows, although the
products between are cuBLAS's, which do not; with more rows there is less to gain."""
APART = {"OVERLAP": False}


def overlapping(rows: int) -> dict[str, bool]:
    """Launch options for that, and the constant that tells the kernel; see quire_kernels.overlap_triton."""
    return {"OVERLAP": True, "launch_pdl": True} if rows <= OVERLAPPED and _can_overlap(architecture()) else APART


def _can_overlap(where: str) -> bool:
    kind, _, number = where.partition(":")
    return kind == "cuda" and number.isdigit() and int(number) >= 90


def tile(kernel: str, dtype: torch.dtype, block_d: int) -> Tile:
    """The shape for a name in TABLES, a dtype and a head dimension that was padded to a power of two."""
    return _known_tile(kernel, architecture(), dtype.itemsize, block_d)


@cache
def _known_tile(kernel: str, where: str, itemsize: int, block_d: int) -> Tile:
    table = TABLES[kernel]
    for kind in (where, where.split(":")[0]):
        fitting = [limit for known, size, limit in table if (known, size) == (kind, itemsize) and limit >= block_d]
        if fitting:
            return table[kind, itemsize, min(fitting)]
    raise KeyError(f"no launch shape for {where}, {itemsize} bytes an element, head dimension {block_d}")
