"""How much of a chain of blocks each of many replicas holds, from its first block on without a gap. Pure.

    holders_of(key, 0)   bit mask of the replicas that hold a block
    place                of a replica: `mask.bit_length()` of its bit; 0 for one that is not known

An index of millions of blocks is in no processor's cache: a look into it is half a microsecond, so few looks count.
A choice among replicas needs to know exactly only how much those hold that can win it: `Match` finds each length up to
a span of blocks, and settles those that it is asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Protocol, overload

HoldersOf = Callable[[bytes, int], int]

_MANY = 8
"""Of as many blocks, one at which a replica falls out: from there on a bisection saves nothing."""
_SPAN = 32
"""Blocks to which lengths are found at first."""


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
    most. All others' lengths are what they hold.
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
        """places, bits: of the replicas. nested, others: those that hold the first block, for `bisect`, for `walk`."""
        self._keys = keys
        self._holders_of = holders_of
        self._places = places
        self._bits = bits
        self._lengths = [0] * (1 + max(places, default=0))
        if others:
            walk(keys, holders_of, others, self._lengths)
        self._spans = bisect(keys, holders_of, nested, self._lengths) if nested else []
        self._taken: list[bytes] | None = None
        """The keys of all spans: a plain list is looked into sooner."""

    def __len__(self) -> int:
        """Replicas."""
        return len(self._places)

    def __getitem__(self, number: int) -> int:
        """Blocks that replica `number` of those that were asked for holds."""
        self.settle((number,))
        return self._lengths[self._places[number]]

    def at_most(self, unit: int = 1) -> list[int]:
        """Of each replica a number of blocks, times `unit`, that it holds no more than; settled ones hold as many."""
        lengths = self._lengths
        return [lengths[place] * unit for place in self._places]

    def settle(self, numbers: Iterable[int]) -> bool:
        """Find how much the replicas of these numbers hold; False: that is known."""
        if not self._spans:
            return False
        asked = reduce(or_, map(self._bits.__getitem__, numbers), 0)
        left, is_new = [], False
        for start, end, bits in self._spans:
            if found := bits & asked:
                if self._taken is None:
                    self._taken = self._keys[: max(end for _, end, _ in self._spans)]
                _settle(self._taken, self._holders_of, (start, end, found), self._lengths)
                bits ^= found
                is_new = True
            if bits:
                left.append((start, end, bits))
        self._spans = left
        return is_new

    def is_any_below(self, length: int) -> bool:
        """Whether any replica holds less than `length` blocks."""
        if not length:
            return False
        if min(self.at_most()) < length:
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


def bisect(keys: Keys, holders_of: HoldersOf, alive: int, lengths: list[int]) -> list[Span]:
    """For replicas that hold with each block all blocks before it: where two places are held by the same, all between.

    Looks twice as far each time until the chain ends or nobody is left, and by halves where some fell out, down to
    spans of `_SPAN` blocks. Their ends are noted for those that fell out in them; the spans are returned.
    """
    spans: list[Span] = []
    last, low = len(keys) - 1, 0
    while low < last:
        high = min(2 * low + 1, last)
        left = holders_of(keys[high], 0) & alive
        if left != alive:
            for start, end, gone in _fallen(keys, holders_of, (low, high, alive, left), wide=_SPAN):
                _note(lengths, gone, end)
                if end - start > 1:
                    spans.append((start, end, gone))
        alive = left
        if not alive:
            return spans
        low = high
    _note(lengths, alive, len(keys))
    return spans


def _settle(keys: Keys, holders_of: HoldersOf, span: Span, lengths: list[int]) -> None:
    """Where in the span each of its replicas falls out."""
    start, end, bits = span
    if end - start <= _MANY * bits.bit_count():
        _note(lengths, _walk_between(keys, holders_of, bits, start, end, lengths), end)
        return
    for low, high, gone in _fallen(keys, holders_of, (start, end, bits, 0), dense=_MANY):
        _note(lengths, _walk_between(keys, holders_of, gone, low, high, lengths), high)


def _fallen(
    keys: Keys, holders_of: HoldersOf, between: tuple[int, int, int, int], *, wide: int = 1, dense: int = 0
) -> Iterator[Span]:
    """Spans of at most `wide` blocks, or of `dense` for each replica in them, by halves.

    between: a place, a later one, the replicas that hold the first, and those of them that hold the second.
    """
    todo = [between]
    while todo:
        start, end, before, after = todo.pop()
        gone = before & ~after
        length = end - start
        if length <= wide or (dense and length <= dense * gone.bit_count()):
            yield start, end, gone
            continue
        middle = (start + end) // 2
        there = holders_of(keys[middle], 0) & before
        if there != before:
            todo.append((start, middle, before, there))
        if there != after:
            todo.append((middle, end, there, after))


def _walk_between(keys: Keys, holders_of: HoldersOf, alive: int, start: int, end: int, lengths: list[int]) -> int:
    """Those of `alive`, which hold the block at `start`, that hold all blocks before `end`; others are noted."""
    same = alive
    for depth, key in enumerate(keys[start + 1 : end], start + 1):
        mask = holders_of(key, 0)
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
