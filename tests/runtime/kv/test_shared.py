"""Which decodes are found to begin with the same blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_runtime.kv import shared
from quire_runtime.kv.shared import SharedPrefixes
from quire_runtime.kv.tables import BlockTables

SIZE = 4


@pytest.fixture(autouse=True)
def anything_pays(monkeypatch):
    monkeypatch.setattr(shared, "LEAST_SAVED", 0)
    monkeypatch.setattr(shared, "FEWEST", 2)


def tables_of(blocks: list[list[int]]) -> BlockTables:
    tables = BlockTables(len(blocks), 4096, SIZE, 5000)
    for row, own in enumerate(blocks):
        tables.table[row, : len(own)] = own
    return tables


def find(prefixes: SharedPrefixes, rows: list[int], contexts: list[int], epochs: list[int] | None = None):
    return prefixes.find(
        np.array(rows, np.int32), np.array(epochs or [0] * len(rows), np.int64), np.array(contexts, np.int32)
    )


def test_the_prefix_of_most_is_found_and_others_share_nothing():
    tables = tables_of([[1, 2, 3, 9], [1, 2, 4, 8], [5, 6, 7], [1, 2, 3, 7]])
    found = find(SharedPrefixes(tables), [3, 2, 1, 0], [14, 10, 13, 15])
    assert found.lens.tolist() == [2 * SIZE, 0, 2 * SIZE, 2 * SIZE]
    assert found.owner == 0


def test_no_more_than_the_shortest_context_is_shared():
    # Row 1 computes position 9 now, inside its third block.
    tables = tables_of([[1, 2, 3, 4], [1, 2, 3]])
    assert find(SharedPrefixes(tables), [0, 1], [14, 9]).lens.tolist() == [2 * SIZE, 2 * SIZE]


def test_long_prefixes_are_compared_to_their_end():
    common = list(range(1, 201))
    tables = tables_of([[*common, 900, 901], [*common, 902, 903], [*common, 900, 904]])
    assert find(SharedPrefixes(tables), [0, 1, 2], [806] * 3).lens.tolist() == [800] * 3


def test_what_does_not_pay_is_left(monkeypatch):
    tables = tables_of([[1, 2, 3], [1, 2, 4], [7]])
    for least, is_found in [(2 * SIZE, True), (2 * SIZE + 1, False)]:
        monkeypatch.setattr(shared, "LEAST_SAVED", least)
        assert (find(SharedPrefixes(tables), [0, 1, 2], [11, 11, 3]) is not None) == is_found


def test_it_looks_anew_when_a_row_changes_its_owner():
    tables = tables_of([[1, 2, 3], [1, 2, 4]])
    prefixes = SharedPrefixes(tables)
    assert find(prefixes, [0, 1], [10, 10]).lens.tolist() == [8, 8]
    tables.table[1, :2] = [6, 7]
    assert find(prefixes, [0, 1], [10, 10], [0, 1]) is None
    assert find(prefixes, [0], [10]) is None


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=6))
def test_shared_tokens_lie_in_the_owners_blocks_before_every_query(blocks):
    tables = tables_of(blocks)
    contexts = [len(own) * SIZE - 1 for own in blocks]
    found = find(SharedPrefixes(tables), list(range(len(blocks))), contexts)
    if found is None:
        return
    assert found.lens[found.owner] > 0
    for row, length in enumerate(found.lens.tolist()):
        count = length // SIZE
        assert length <= contexts[row]
        assert tables.table[row, :count].tolist() == tables.table[found.owner, :count].tolist()
