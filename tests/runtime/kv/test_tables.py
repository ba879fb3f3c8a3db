"""Block tables: growth, sharing, copies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_runtime.kv.pool import OutOfBlocks
from quire_runtime.kv.tables import BlockTables

SIZE = 4


def tables(num_blocks: int = 33, num_rows: int = 6) -> BlockTables:
    return BlockTables(num_rows, 64, SIZE, num_blocks, "revision")


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def grow(it: BlockTables, row: int, length: int) -> None:
    it.extend(ids(row), it.missing(ids(row), ids(length)))


def blocks_of(it: BlockTables, row: int) -> list[int]:
    return it.table[row, : it.held[row]].tolist()


def test_rows_grow_by_what_they_lack() -> None:
    it = tables()
    writes = it.extend(ids(2, 0), it.missing(ids(2, 0), ids(9, 4)))
    assert writes.rows.tolist() == [2, 2, 2, 0]
    assert writes.columns.tolist() == [0, 1, 2, 0]
    assert writes.blocks.tolist() == blocks_of(it, 2) + blocks_of(it, 0)
    again = it.extend(ids(2, 0), it.missing(ids(2, 0), ids(12, 5)))
    assert (again.rows.tolist(), again.columns.tolist()) == ([0], [1])


def test_growth_that_does_not_fit_changes_nothing() -> None:
    it = tables(num_blocks=4)
    grow(it, 0, 8)
    with pytest.raises(OutOfBlocks):
        it.extend(ids(0, 1), it.missing(ids(0, 1), ids(9, 4)))
    assert it.held.tolist() == [2, 0, 0, 0, 0, 0]
    assert it.pool.num_available == 1


def test_a_shared_block_is_copied_by_who_writes_first_and_the_last_owner_writes_in_place() -> None:
    it = tables()
    grow(it, 0, 6)
    full, partial = blocks_of(it, 0)
    for child in (1, 2):
        it.fork(0, child, 6, it.chain(""))
        assert blocks_of(it, child) == [full, partial]
    assert it.pool.num_held == 2
    source, target = it.own(1, 5) or (0, 0)
    assert source == partial
    assert blocks_of(it, 1) == [full, target]
    assert it.own(1, 5) is None
    assert it.own(0, 5) is not None
    assert it.own(2, 5) is None
    assert blocks_of(it, 2) == [full, partial]
    for row in range(3):
        it.release(row)
    assert it.pool.num_held == 0


def test_a_copy_without_a_block_left_changes_nothing() -> None:
    it = tables(num_blocks=3)
    grow(it, 0, 6)
    it.fork(0, 1, 6, it.chain(""))
    with pytest.raises(OutOfBlocks):
        it.own(1, 5)
    assert blocks_of(it, 1) == blocks_of(it, 0)


def test_a_fork_goes_on_where_its_parents_prefix_ends() -> None:
    """Both register what they compute behind the shared block, and each is found."""
    it = tables()
    parent, tokens = it.chain(""), np.arange(8, dtype=np.int32)
    grow(it, 0, 8)
    it.register(0, parent, tokens)
    child = it.fork(0, 1, 5, parent)
    assert it.registered[1] == 1
    it.own(1, 5)
    other = np.array([0, 1, 2, 3, 4, 9, 9, 9], np.int32)
    it.register(1, child, other)
    behind = np.array([0], np.int32)
    assert it.lookup(it.chain(""), np.concatenate((tokens, behind))).tolist() == blocks_of(it, 0)
    assert it.lookup(it.chain(""), np.concatenate((other, behind))).tolist() == blocks_of(it, 1)


def test_a_lookup_leaves_one_token_to_compute() -> None:
    it = tables()
    tokens = np.arange(8, dtype=np.int32)
    grow(it, 0, 8)
    it.register(0, it.chain(""), tokens)
    assert it.lookup(it.chain(""), tokens).tolist() == blocks_of(it, 0)[:1]
    assert it.lookup(it.chain("salt"), tokens).tolist() == []


def test_waste_counts_slots_and_shared_blocks_once() -> None:
    it = tables()
    assert it.waste_ratio(ids(), ids()) == 0.0
    grow(it, 0, 5)
    assert it.waste_ratio(ids(0), ids(5)) == 3 / 8
    grow(it, 1, 4)
    assert it.waste_ratio(ids(0, 1), ids(5, 4)) == 3 / 12


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["grow", "fork", "write", "end"]), st.integers(0, 5), st.integers(0, 5)), max_size=60
    )
)
def test_nobody_writes_where_another_row_reads(script: list[tuple[str, int, int]]) -> None:
    """Each row's slots hold its own history after any growth, fork, write and end; references match the tables."""
    it = tables(num_blocks=40)
    slots: dict[tuple[int, int], int] = {}
    history: dict[int, list[int]] = {}
    for stamp, (name, row, other) in enumerate(script):
        if name == "grow" and row not in history:
            grow(it, row, 1)
            history[row] = [stamp]
            slots[blocks_of(it, row)[0], 0] = stamp
        elif name == "fork" and row in history and other not in history:
            it.fork(row, other, len(history[row]), it.chain(""))
            history[other] = list(history[row])
        elif name == "write" and row in history and len(history[row]) < 20:
            position = len(history[row])
            if position % SIZE:
                copied = it.own(row, position)
                if copied is not None:
                    for offset in range(SIZE):
                        slots[copied[1], offset] = slots.get((copied[0], offset), -1)
            grow(it, row, position + 1)
            history[row].append(stamp)
            slots[blocks_of(it, row)[position // SIZE], position % SIZE] = stamp
        elif name == "end" and row in history:
            it.release(row)
            del history[row]
        for each, stamps in history.items():
            held = blocks_of(it, each)
            assert [slots[held[i // SIZE], i % SIZE] for i in range(len(stamps))] == stamps
        counts = np.bincount([block for each in history for block in blocks_of(it, each)], minlength=40)
        assert counts.tolist() == it.pool.ref_counts.tolist()
