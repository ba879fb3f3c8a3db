"""The pool beside a model of it that is too slow to be wrong."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire_runtime.kv.pool import BlockPool, OutOfBlocks


def ids(*blocks: int) -> np.ndarray:
    return np.array(blocks, np.int32)


class PoolMachine(RuleBasedStateMachine):
    """free: a set; cached: oldest first; counts: block -> references."""

    def __init__(self) -> None:
        super().__init__()
        self.evicted: list[int] = []
        self.pool = BlockPool(12, lambda blocks: self.evicted.extend(blocks.tolist()))
        self.free = set(range(1, 12))
        self.cached: list[int] = []
        self.counts: dict[int, int] = {}
        self.kept: set[int] = set()

    @rule(count=st.integers(0, 13))
    def take(self, count: int) -> None:
        before = list(self.evicted)
        if count > len(self.free) + len(self.cached):
            with pytest.raises(OutOfBlocks):
                self.pool.take(count)
            assert self.evicted == before
            return
        taken = self.pool.take(count).tolist()
        fresh = min(count, len(self.free))
        assert set(taken[:fresh]) <= self.free
        oldest, self.cached = self.cached[: count - fresh], self.cached[count - fresh :]
        assert taken[fresh:] == oldest
        assert self.evicted == before + oldest
        self.free -= set(taken)
        self.kept -= set(oldest)
        self.counts.update(dict.fromkeys(taken, 1))

    @precondition(lambda self: self.counts)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.counts)), unique=True))
        self.pool.release(ids(*blocks))
        for block in blocks:
            self.counts[block] -= 1
            if self.counts[block] == 0:
                del self.counts[block]
                if block in self.kept:
                    self.cached.append(block)
                else:
                    self.free.add(block)

    @precondition(lambda self: self.counts or self.cached)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.counts) + sorted(self.cached)), unique=True))
        self.pool.share(ids(*blocks))
        for block in blocks:
            self.counts[block] = self.counts.get(block, 0) + 1
        self.cached = [block for block in self.cached if block not in blocks]

    @precondition(lambda self: self.counts)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.counts)))
        self.pool.keep(block)
        self.kept.add(block)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.kept)))
        self.pool.drop(block)
        self.kept.discard(block)
        if block in self.cached:
            self.cached.remove(block)
            self.free.add(block)

    @invariant()
    def counts_agree(self) -> None:
        pool = self.pool
        assert (pool.num_free, pool.num_held, pool.num_cached) == (len(self.free), len(self.counts), len(self.cached))
        assert pool.num_free + pool.num_held + pool.num_cached == pool.num_blocks - 1
        assert {block: count for block, count in enumerate(pool.ref_counts.tolist()) if count} == self.counts


TestPool = PoolMachine.TestCase


def test_every_block_but_the_first_is_handed_out_once() -> None:
    pool = BlockPool(100)
    assert sorted([*pool.take(40).tolist(), *pool.take(59).tolist()]) == list(range(1, 100))
    with pytest.raises(OutOfBlocks):
        pool.take(1)


def test_tails_are_evicted_before_their_prefixes() -> None:
    pool = BlockPool(6)
    sequence = pool.take(3)
    for block in sequence.tolist():
        pool.keep(block)
    pool.release(sequence[::-1])
    pool.take(2)
    assert [pool.take(1)[0] for _ in range(3)] == sequence[::-1].tolist()


def test_a_hit_makes_a_cached_block_the_youngest() -> None:
    pool = BlockPool(4)
    first, second, third = pool.take(3).tolist()
    for block in (first, second, third):
        pool.keep(block)
    pool.release(ids(first, second, third))
    pool.share(ids(first))
    pool.release(ids(first))
    assert pool.take(3).tolist() == [second, third, first]


def test_a_pool_of_one_block_has_nothing_to_hand_out() -> None:
    with pytest.raises(ValueError, match="at least one more"):
        BlockPool(1)
