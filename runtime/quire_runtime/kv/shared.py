"""Which decodes of a batch begin with the same blocks, so that attention can read those once for all of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quire_runtime.kv.pool import Ints
from quire_runtime.kv.tables import BlockTables

LEAST_SAVED = 16384
"""Keys that need not be read again; with fewer the further kernel costs more than it spares."""
FEWEST = 17
"""Sequences of a batch; for fewer the GPU's cache holds what they share."""
COMPARED_AT_ONCE = 64
"""Columns of the block tables."""


@dataclass(frozen=True, slots=True)
class SharedBlocks:
    """lens int32 [decodes]: leading tokens that a batch slot shares with `owner`, a slot too; 0: none."""

    lens: Ints
    owner: int

    def arrays(self) -> tuple[Ints, Ints]:
        """lens, and owner as int32 [1]"""
        return self.lens, np.array([self.owner], np.int32)


class SharedPrefixes:
    """Finds the blocks that most sequences of a batch begin with; looks anew only when other sequences decode."""

    def __init__(self, tables: BlockTables) -> None:
        self._tables = tables
        self._rows: Ints = np.empty(0, np.int32)
        self._epochs: NDArray[np.int64] = np.empty(0, np.int64)
        self._found: SharedBlocks | None = None

    def find(self, rows: Ints, epochs: NDArray[np.int64], contexts: Ints) -> SharedBlocks | None:
        """Of a batch of decodes; contexts int32 [n]: tokens before the query. None where it would not pay.

        epochs: change when a row changes its owner. What a sequence once shared it shares until its end.
        """
        if not (np.array_equal(rows, self._rows) and np.array_equal(epochs, self._epochs)):
            self._rows, self._epochs = rows, epochs
            self._found = self._search(rows, contexts)
        return self._found

    def _search(self, rows: Ints, contexts: Ints) -> SharedBlocks | None:
        size, table = self._tables.block_size, self._tables.table
        if len(rows) < FEWEST or (len(rows) - 1) * int(contexts.max()) < LEAST_SAVED:
            return None
        _, places, counts = np.unique(table[rows, 0], return_inverse=True, return_counts=True)
        winner = int(counts.argmax())
        members = (places == winner).nonzero()[0]
        limit = int(contexts[members].min()) // size
        if (len(members) - 1) * limit * size < max(LEAST_SAVED, 1):
            return None
        own = rows[members]
        common = 0
        while common < limit:
            columns = slice(common, min(common + COMPARED_AT_ONCE, limit))
            differs = (table[own, columns] != table[own[0], columns]).any(axis=0)
            if differs.any():
                common += int(differs.argmax())
                break
            common = columns.stop
        if (len(members) - 1) * common * size < max(LEAST_SAVED, 1):
            return None
        lens = np.zeros(len(rows), np.int32)
        lens[members] = common * size
        return SharedBlocks(lens, int(members[0]))
