"""Block tables of the running sequences, and the rules by which they share blocks."""

from dataclasses import dataclass

import numpy as np

from quire_api.blocks import root_key
from quire_runtime.kv.pool import BlockPool, Ints
from quire_runtime.kv.prefix import PrefixChain, PrefixIndex, PrefixListener

EMPTY: Ints = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class TableWrites:
    """Block-table entries to write: int32 [m] each."""

    rows: Ints
    columns: Ints
    blocks: Ints


NO_WRITES = TableWrites(EMPTY, EMPTY, EMPTY)


class BlockTables:
    """For each row the blocks of its sequence, in order: token i lives in block `table[row, i // block_size]`.

    A full block may be shared by any number of rows, for nobody writes it again. A partly filled block is shared only
    between `fork` and `own`: whoever writes next copies it first.

    table   int32 [rows, ceil(max_len / block_size)], valid up to `held[row]`
    held    int32 [rows]  blocks of each row
    registered int32 [rows]  how many of them the prefix index has been told
    """

    def __init__(
        self,
        num_rows: int,
        max_len: int,
        block_size: int,
        num_blocks: int,
        model_revision: str = "",
        *,
        enable_prefix_caching: bool = True,
        listener: PrefixListener | None = None,
    ) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.index = PrefixIndex(self.pool, block_size, listener) if enable_prefix_caching else None
        self.table = np.zeros((num_rows, -(-max_len // block_size)), np.int32)
        self.held = np.zeros(num_rows, np.int32)
        self.registered = np.zeros(num_rows, np.int32)
        self._model_revision = model_revision

    def chain(self, salt: str) -> PrefixChain:
        """An empty chain for a new sequence: it meets only sequences of the same salt."""
        if self.index is None:
            return PrefixChain(b"")
        return PrefixChain(root_key(self._model_revision, self.block_size, salt=salt), salt)

    def blocks_for(self, length: int) -> int:
        """Blocks that `length` tokens fill, the last one perhaps in part."""
        return -(-length // self.block_size)

    def missing(self, rows: Ints, lengths: Ints) -> Ints:
        """Blocks that each row lacks to hold `lengths` tokens: int32 [n], never negative."""
        lacking: Ints = (lengths + (self.block_size - 1)) // self.block_size - self.held[rows]
        return np.maximum(lacking, 0, out=lacking)

    def extend(self, rows: Ints, missing: Ints) -> TableWrites:
        """Append `missing[i]` new blocks to `rows[i]` (each row once).

        Raises:
            OutOfBlocks: the pool has fewer blocks; no table changed.
        """
        total = int(missing.sum())
        if total == 0:
            return NO_WRITES
        growing = missing.nonzero()[0]
        rows, missing = rows[growing], missing[growing]
        blocks = self.pool.take(total)
        columns = self.held[rows]
        self.held[rows] = columns + missing
        if total > len(rows):
            starts = np.cumsum(missing, dtype=np.int32) - missing
            columns = np.repeat(columns - starts, missing) + np.arange(total, dtype=np.int32)
            rows = np.repeat(rows, missing)
        self.table[rows, columns] = blocks
        return TableWrites(rows, columns, blocks)

    def lookup(self, chain: PrefixChain, tokens: Ints) -> Ints:
        """Blocks of the longest known prefix of `tokens` that leaves at least one token to compute; none are held."""
        if self.index is None:
            return EMPTY
        return self.index.lookup(chain, self._full_blocks(tokens[:-1]))

    def adopt(self, row: int, blocks: Ints) -> None:
        """Start an empty row with blocks found by `lookup`."""
        self.pool.share(blocks)
        self.table[row, : len(blocks)] = blocks
        self.held[row] = self.registered[row] = len(blocks)

    def fork(self, parent: int, child: int, length: int, chain: PrefixChain) -> PrefixChain:
        """Start the empty row `child` with the blocks of the first `length` tokens of `parent`.

        chain: the parent's. Returns the child's.
        """
        self.adopt(child, self.table[parent, : self.blocks_for(length)].copy())
        twin = chain.fork(length // self.block_size)
        self.registered[child] = len(twin.identities)
        return twin

    def entries(self, row: int) -> TableWrites:
        """The whole table of one row."""
        count = int(self.held[row])
        return TableWrites(
            np.full(count, row, np.int32), np.arange(count, dtype=np.int32), self.table[row, :count].copy()
        )

    def own(self, row: int, position: int) -> tuple[int, int] | None:
        """Make the block of `position`, one of the row's, safe to write: (source, target) if it has to be copied.

        Raises:
            OutOfBlocks: a copy is needed and the pool is empty; nothing changed.
        """
        column = position // self.block_size
        shared = self.table[row, column]
        if self.pool.ref_counts[shared] == 1:
            return None
        copy = self.pool.take(1)
        self.pool.release(np.array([shared], np.int32))
        self.table[row, column] = copy[0]
        return int(shared), int(copy[0])

    def register(self, row: int, chain: PrefixChain, tokens: Ints) -> None:
        """Tell the index the full blocks of `tokens`, the sequence's first ones: known, and stored or planned to be."""
        if self.index is None:
            return
        size, first = self.block_size, len(chain.identities)
        full = max(len(tokens) // size, first)
        contents = tokens[first * size : full * size].reshape(full - first, size)
        self.index.register(chain, self.table[row, first:full], contents)
        self.registered[row] = full

    def register_next(self, rows: Ints, chains: list[PrefixChain], tokens: Ints) -> None:
        """The same where each of `rows` has one more full block; tokens int32 [all rows, max_len]."""
        if self.index is None:
            return
        columns = self.registered[rows]
        places = (columns * self.block_size)[:, None] + np.arange(self.block_size)
        self.index.register_next(chains, self.table[rows, columns], tokens[rows[:, None], places])
        self.registered[rows] = columns + 1

    def release(self, row: int) -> None:
        """Give back all blocks of a row, its last one first."""
        self.pool.release(self.table[row, : self.held[row]][::-1])
        self.held[row] = self.registered[row] = 0

    def waste_ratio(self, rows: Ints, lengths: Ints) -> float:
        """Slots allocated but unused / slots allocated, when `rows` hold `lengths` tokens; 0 if nothing is held."""
        if self.pool.num_held == 0:
            return 0.0
        unused = self.held[rows].sum() * self.block_size - lengths.sum()
        return float(unused) / (self.pool.num_held * self.block_size)

    def _full_blocks(self, tokens: Ints) -> Ints:
        count = len(tokens) // self.block_size
        return tokens[: count * self.block_size].reshape(count, self.block_size)
