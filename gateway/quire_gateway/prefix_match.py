"""How much of a chain of blocks each of many replicas holds, from its first block on without a gap. Pure.

    holders_of(key, 0)   bit mask of the replicas that hold a block
    place                of a replica: `mask.bit_length()` of its bit; 0 for one that is not known

An index of millions of blocks is in no processor's cache, so few looks count: a choice among replicas needs to know
exactly only how much those hold that can win it. `Match` finds each length up to a span of blocks, and settles those
that it is asked for. Looks that belong together are one pass of `map`, for what Python does between two of them takes
longer than they do.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Protocol, overload

HoldersOf = Callable[[bytes, int], int]

_SPAN = 16
"""Blocks to which lengths are found at first: of 8,192 tokens in blocks of 16 a 32nd, and costs so near are alike."""


class Keys(Protocol):
    """A chain's block keys, computed no further than they are asked for."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, at: int, /) -> bytes: ...
    @overload
    def __getitem__(self, at: slice, /) -> list[bytes]: ...


class Match:
    """How many blocks of one chain each of some replicas holds. To be asked before the index changes.

    Of `keys` it takes none beyond twice the place of the first block that none of the replicas holds.

    Invariant: a replica in a span (start, end, bits) holds block `start` and not block `end`; it is in one span at
    most, and is unsettled. All others' lengths are what they hold.
    """

    def __init__(
        self,
        keys: Keys,
        holders_of: HoldersOf,
        places: Sequence[int],
        bits: Sequence[int],
        nested: int,
        others: int,
    ) -> None:
        """places, bits: of the replicas. nested, others: those that hold the first block, for `probe`, for `walk`."""
        self._keys = keys
        self._holders_of = holders_of
        self._places = places
        self._bits = bits
        self._lengths = [0] * (1 + max(places, default=0))
        if others:
            walk(keys, holders_of, others, self._lengths)
        self._spans = probe(keys, holders_of, nested, self._lengths) if nested else []
        self._unsettled = sum([bits for _, _, bits in self._spans])

    def __len__(self) -> int:
        """Replicas."""
        return len(self._places)

    def __getitem__(self, number: int) -> int:
        """Blocks that replica `number` of those that were asked for holds."""
        if self._bits[number] & self._unsettled:
            self.settle((number,))
        return self._lengths[self._places[number]]

    def at_most(self, unit: int = 1) -> list[int]:
        """Of each replica a number of blocks, times `unit`, that it holds no more than; settled ones hold as many."""
        lengths = self._lengths
        return [lengths[place] * unit for place in self._places]

    def settle(self, numbers: Iterable[int]) -> bool:
        """Find how much the replicas of these numbers, each given once, hold; False: that is known."""
        if not self._unsettled:
            return False
        asked = sum(map(self._bits.__getitem__, numbers)) & self._unsettled
        if not asked:
            return False
        self._spans = _settle(self._keys, self._holders_of, self._spans, asked, self._lengths)
        self._unsettled ^= asked
        return True

    def is_any_below(self, length: int) -> bool:
        """Whether any replica holds less than `length` blocks."""
        if not length:
            return False
        lengths = self._lengths
        for place in self._places:
            if lengths[place] < length:
                return True
        unsettled = 0
        for start, _, bits in self._spans:
            if start + 1 < length:
                unsettled |= bits
        return bool(unsettled) and bool(unsettled & ~self._holders_of(self._keys[length - 1], 0))

    def is_any_beyond(self, length: int) -> bool:
        """Whether any replica holds more than `length` blocks."""
        unsettled = 0
        for start, end, bits in self._spans:
            if start >= length:
                return True
            if end > length:
                unsettled |= bits
        if unsettled and unsettled & self._holders_of(self._keys[length], 0):
            return True
        return any(
            self._lengths[place] > length and not unsettled >> (place - 1) & 1 for place in self._places if place
        )


Span = tuple[int, int, int]
"""A place, a later one, and those replicas that hold the first and not the second."""


def walk(keys: Keys, holders_of: HoldersOf, alive: int, lengths: list[int]) -> None:
    """Block by block, whatever the replicas hold.

    alive: mask of the replicas that are asked for; all of them hold the first block. lengths[place]: the answer.
    """
    end, high = len(keys), 0
    while alive and high + 1 < end:
        low, high = high, min(2 * high + 1, end - 1)
        alive = _walk_between(keys, holders_of, alive, low, high + 1, lengths)
    _note(lengths, alive, end)


def probe(keys: Keys, holders_of: HoldersOf, alive: int, lengths: list[int]) -> list[Span]:
    """For replicas that hold with each block all blocks before it: where two places are held by the same, all between.

    Looks twice as far each time until the chain ends or nobody is left, and where some fell out at every block of the
    number `_SPAN` between. The end of a span is noted for those that fell out in it; the spans of more than one block
    are returned.
    """
    spans: list[Span] = []
    last, low = len(keys) - 1, 0
    while low < last:
        high = min(2 * low + 1, last)
        there = holders_of(keys[high], 0)
        if alive & ~there:
            places = [*range(low + _SPAN, high, _SPAN), high]
            masks = [*map(holders_of, keys[low + _SPAN : high : _SPAN], repeat(0)), there]
            start = low
            for end, mask in zip(places, masks, strict=True):
                if gone := alive & ~mask:
                    _note(lengths, gone, end)
                    if end - start > 1:
                        spans.append((start, end, gone))
                    alive ^= gone
                    if not alive:
                        return spans
                start = end
        low = high
    _note(lengths, alive, len(keys))
    return spans


def _settle(keys: Keys, holders_of: HoldersOf, spans: list[Span], asked: int, lengths: list[int]) -> list[Span]:
    """Where each replica of the mask `asked` falls out in its span, block by block; the spans of the others.

    spans: in the order of the chain; of each replica its span's end has been noted.
    """
    left: list[Span] = []
    taken = keys[: spans[-1][1]]
    for number, span in enumerate(spans, 1):
        start, end, bits = span
        alive = bits & asked
        if alive != bits:
            left.append((start, end, bits ^ alive) if alive else span)
        if alive:
            _walk_between(taken, holders_of, alive, start, end, lengths)
            asked ^= alive
            if not asked:
                return left + spans[number:]
    return left


def _walk_between(keys: Keys, holders_of: HoldersOf, alive: int, start: int, end: int, lengths: list[int]) -> int:
    """Those of `alive`, which hold the block at `start`, that hold all blocks before `end`; others are noted."""
    same = alive
    for depth, mask in enumerate(map(holders_of, keys[start + 1 : end], repeat(0)), start + 1):
        # Neighbours in a chain are mostly held by the same replicas; equal masks are mostly one object.
        if mask is same:
            continue
        same = mask
        if gone := alive & ~mask:
            alive ^= gone
            while gone:
                place = gone.bit_length()
                lengths[place] = depth
                gone ^= 1 << (place - 1)
            if not alive:
                break
    return alive


def _note(lengths: list[int], bits: int, length: int) -> None:
    """Enter `length` at the place of each of `bits`."""
    while bits:
        place = bits.bit_length()
        lengths[place] = length
        bits ^= 1 << (place - 1)
