"""Which cached prefixes are asked for most: what a new replica is warmed with."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quire_runtime.kv.pool import Ints


@dataclass(frozen=True, slots=True)
class HitBlocks:
    """The findable blocks that prompts have found: parallel arrays, one entry a block.

    hits int32 [n]; identities int64 [n], growing with the time of storing; parents int64 [n]: the identity of the block
    before, negative for first blocks; tokens int32 [n, block_size]; salts: by identity, of first blocks that have one.

    Whoever finds a block has found all before it: a block's hits are never more than its parent's.
    """

    hits: Ints
    identities: NDArray[np.int64]
    parents: NDArray[np.int64]
    tokens: Ints
    salts: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Prefix:
    """hits: of the first block that no prefix before it has. token_ids int32, whole blocks."""

    hits: int
    token_ids: Ints
    salt: str


def hottest(seen: HitBlocks, max_prefixes: int, max_tokens: int) -> list[Prefix]:
    """The blocks with the most hits that fit, as prefixes of which none begins another, the hottest first.

    max_tokens: in all, those that prefixes have in common counted once: what it costs to compute them.

    Each block costs the same and is worth its hits, and none is worth more than the one before it; so taking them by
    hits takes the best ones, and never one without its parent.
    """
    size = seen.tokens.shape[1]
    order = np.lexsort((seen.identities, -seen.hits))
    room = max_tokens // size if max_prefixes > 0 else 0
    paths: list[list[int]] = []
    opened: list[int] = []
    place_of: dict[int, tuple[int, int]] = {}
    """Identity of a block taken -> the path that it was put on, and the blocks up to and with it."""
    for index, identity, parent in zip(
        order.tolist(), seen.identities[order].tolist(), seen.parents[order].tolist(), strict=True
    ):
        if room == 0:
            break
        path, depth = place_of.get(parent, (-1, 0))
        if parent >= 0 and depth == 0:
            continue  # its parent was evicted, or not taken
        if depth == 0 or len(paths[path]) > depth:
            if len(paths) == max_prefixes:
                continue
            paths.append(paths[path][:depth] if depth else [])
            opened.append(index)
            path = len(paths) - 1
        paths[path].append(index)
        place_of[identity] = path, depth + 1
        room -= 1
    return [
        Prefix(int(seen.hits[first]), seen.tokens[path].reshape(-1), seen.salts.get(int(seen.identities[path[0]]), ""))
        for first, path in zip(opened, paths, strict=True)
    ]
