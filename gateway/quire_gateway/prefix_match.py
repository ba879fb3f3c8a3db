"""How much of a chain of blocks each of many replicas holds, from its first block on without a gap. Pure.

    holders_of(key, 0)   bit mask of the replicas that hold a block
    alive                mask of the replicas that are asked for; all of them hold the first block
    lengths[place]       the answer for the replica whose bit has the place `mask.bit_length()`

An index of millions of blocks is in no processor's cache: a look into it is half a microsecond, so few looks count.
"""

from collections.abc import Callable
from typing import Protocol

HoldersOf = Callable[[bytes, int], int]

_MANY = 4
"""Of as many blocks, one at which a replica falls out: from there on a bisection saves nothing."""


class Keys(Protocol):
    """A chain's block keys, computed no further than they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, depth: int, /) -> bytes: ...


def walk(keys: Keys, holders_of: HoldersOf, alive: int, lengths: list[int]) -> None:
    """Block by block, whatever the replicas hold."""
    _note(lengths, _walk_between(keys, holders_of, alive, 0, len(keys), lengths), len(keys))


def bisect(keys: Keys, holders_of: HoldersOf, alive: int, lengths: list[int]) -> None:
    """For replicas that hold with each block all blocks before it: where two places are held by the same, all between.

    Looks twice as far each time until the chain ends or nobody is left, and by halves where some fell out; block by
    block where so many did that halves would mostly differ too.
    """
    last, low = len(keys) - 1, 0
    while low < last:
        high = min(2 * low + 1, last)
        left = holders_of(keys[high], 0) & alive
        between = [(low, alive, high, left)] if left != alive else []
        while between:
            start, before, end, after = between.pop()
            if _MANY * (before & ~after).bit_count() >= end - start:
                before = _walk_between(keys, holders_of, before, start, end, lengths)
                _note(lengths, before & ~after, end)
                continue
            middle = (start + end) // 2
            there = holders_of(keys[middle], 0) & before
            if there != before:
                between.append((start, before, middle, there))
            if there != after:
                between.append((middle, there, end, after))
        alive = left
        if not alive:
            return
        low = high
    _note(lengths, alive, len(keys))


def _walk_between(keys: Keys, holders_of: HoldersOf, alive: int, start: int, end: int, lengths: list[int]) -> int:
    """Those of `alive`, which hold the block at `start`, that hold all blocks before `end`; others are noted."""
    same = alive
    for depth in range(start + 1, end):
        mask = holders_of(keys[depth], 0)
        # Neighbours in a chain are mostly held by the same replicas; equal masks are mostly one object.
        if mask is same:
            continue
        same = mask
        if gone := alive & ~mask:
            _note(lengths, gone, depth)
            alive ^= gone
            if not alive:
                break
    return alive


def _note(lengths: list[int], bits: int, length: int) -> None:
    """Enter `length` at the place of each of `bits`."""
    while bits:
        place = bits.bit_length()
        lengths[place] = length
        bits ^= 1 << (place - 1)
