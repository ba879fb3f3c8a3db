"""The fixed set of KV-cache blocks: who may write where, and what is forgotten first."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]


class OutOfBlocks(Exception):
    """Fewer blocks are free or cached than were asked for; nothing was taken."""


class BlockPool:
    """Fixed set of KV-cache blocks, handed out by id.

    A block is *free*, *held* (reference count >= 1) or *cached* (count 0, contents still valid, reusable in LRU order).
    Every operation is O(1) per block and works on arrays: no Python object lives per block.

    Invariant: num_free + num_held + num_cached == num_blocks - 1. Block 0 is never handed out: padding rows write
    there, and here it is the head of the LRU list.

    num_blocks: blocks of the device, block 0 included, >= 2.
    on_evict: told the ids of cached blocks, oldest first, that are about to be handed out for other contents.
    """

    def __init__(self, num_blocks: int, on_evict: Callable[[Ints], None] | None = None) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool needs block 0 and at least one more; got {num_blocks}")
        self.num_blocks = num_blocks
        self.num_free = num_blocks - 1
        self.num_cached = 0
        self.on_evict = on_evict
        self.ref_counts = np.zeros(num_blocks, np.int32)
        self._free = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        self._is_kept = np.zeros(num_blocks, np.bool_)
        self._kept_of = self._is_kept.data
        self._next = np.zeros(num_blocks, np.int32)
        self._previous = np.zeros(num_blocks, np.int32)
        self._next_of = self._next.data
        self._previous_of = self._previous.data

    @property
    def num_available(self) -> int:
        """Blocks that `take` can hand out now: free and cached."""
        return self.num_free + self.num_cached

    @property
    def num_held(self) -> int:
        return self.num_blocks - 1 - self.num_free - self.num_cached

    def take(self, count: int) -> Ints:
        """Hold `count` blocks, free ones first, then the least recently used cached ones.

        Raises:
            OutOfBlocks: fewer than `count` are free or cached; nothing was taken.
        """
        if count > self.num_available:
            raise OutOfBlocks(f"{count} blocks asked for, {self.num_available} free or cached")
        taken = np.empty(count, np.int32)
        fresh = min(count, self.num_free)
        taken[:fresh] = self._free[self.num_free - fresh : self.num_free][::-1]
        self.num_free -= fresh
        if count > fresh:
            self._evict(taken[fresh:])
        self.ref_counts[taken] = 1
        return taken

    def share(self, blocks: Ints) -> None:
        """Hold blocks (each id once) that are held or cached already: one more reference to each."""
        idle = blocks[self.ref_counts[blocks] == 0]
        for block in idle.tolist():
            self._unlink(block)
        self.num_cached -= len(idle)
        self.ref_counts[blocks] += 1

    def release(self, blocks: Ints) -> None:
        """Give one reference to each of `blocks` (each id once) back.

        The last reference makes a kept block cached and any other one free. Of the cached ones, the first given back
        is the first evicted: release a sequence's blocks in reverse, so that prefixes outlive their tails.
        """
        self.ref_counts[blocks] -= 1
        idle = blocks[self.ref_counts[blocks] == 0]
        is_kept = self._is_kept[idle]
        self._push_free(idle[~is_kept])
        self._append(idle[is_kept])

    def keep(self, block: int) -> None:
        """The contents of a held block are worth keeping: it becomes cached, not free, when it is given back."""
        self._kept_of[block] = True

    def drop(self, block: int) -> None:
        """The contents of a block are of no more use: a cached one becomes free at once."""
        if self._is_kept[block] and self.ref_counts[block] == 0:
            self._unlink(block)
            self.num_cached -= 1
            self._push_free(np.array([block], np.int32))
        self._is_kept[block] = False

    def _evict(self, out: Ints) -> None:
        block, following = self._next_of[0], self._next_of
        for i in range(len(out)):
            out[i] = block
            block = following[block]
        following[0] = block
        self._previous_of[block] = 0
        self.num_cached -= len(out)
        self._is_kept[out] = False
        if self.on_evict is not None:
            self.on_evict(out)

    def _push_free(self, blocks: Ints) -> None:
        self._free[self.num_free : self.num_free + len(blocks)] = blocks
        self.num_free += len(blocks)

    def _append(self, blocks: Ints) -> None:
        if len(blocks) == 0:
            return
        last = self._previous_of[0]
        self._next[blocks[:-1]] = blocks[1:]
        self._previous[blocks[1:]] = blocks[:-1]
        self._next[last] = blocks[0]
        self._previous[blocks[0]] = last
        self._next[blocks[-1]] = 0
        self._previous[0] = blocks[-1]
        self.num_cached += len(blocks)

    def _unlink(self, block: int) -> None:
        before, after = self._previous_of[block], self._next_of[block]
        self._next_of[before] = after
        self._previous_of[after] = before
