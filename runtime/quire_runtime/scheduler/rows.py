"""State of the running sequences: one array entry each, indexed by row."""

import numpy as np
from numpy.typing import NDArray

from quire_runtime.scheduler.plan import Bools, Ints
from quire_runtime.scheduler.sequence import Sequence

STOP_WIDTH = 8


class RunningRows:
    """Arrays over rows; a sequence keeps its row from admission until it ends or is preempted.

    epoch       counts the owners of a row: results planned for an earlier one are stale
    known       tokens of the sequence, those drawn by steps in flight included
    received    those of them whose value the host has: `tokens[row, :received]`
    computed    tokens whose K and V are stored, steps in flight included
    end         length at which the sequence is complete
    cached      prompt tokens its request read from the prefix cache

    Between steps computed < known <= end, and a row with known == end only waits for its last tokens.
    """

    def __init__(self, num_rows: int, max_len: int) -> None:
        self.epoch: NDArray[np.int64] = np.zeros(num_rows, np.int64)
        self.rank: NDArray[np.int64] = np.zeros(num_rows, np.int64)
        self.handle: NDArray[np.int64] = np.zeros(num_rows, np.int64)
        self.choice = np.zeros(num_rows, np.int32)
        self.prompt_len = np.zeros(num_rows, np.int32)
        self.known = np.zeros(num_rows, np.int32)
        self.received = np.zeros(num_rows, np.int32)
        self.computed = np.zeros(num_rows, np.int32)
        self.end = np.zeros(num_rows, np.int32)
        self.min_tokens = np.zeros(num_rows, np.int32)
        self.cached = np.zeros(num_rows, np.int32)
        self.tokens = np.zeros((num_rows, max_len), np.int32)
        self.sequences: list[Sequence | None] = [None] * num_rows
        self.order: Ints = np.empty(0, np.int32)
        """Rows in use, by rank."""
        self._stops = np.full((num_rows, STOP_WIDTH), -1, np.int32)
        self._many_stops: dict[int, frozenset[int]] = {}
        self._unused = list(range(num_rows - 1, -1, -1))

    @property
    def num_unused(self) -> int:
        return len(self._unused)

    def put(self, sequence: Sequence, context: int) -> int:
        """Give a sequence a row, with K and V of its first `context` tokens at hand. Returns the row."""
        row = self._unused.pop()
        family, request = sequence.family, sequence.family.request
        length = len(sequence.tokens)
        self.rank[row] = sequence.rank
        self.handle[row] = request.handle
        self.choice[row] = sequence.choice
        self.prompt_len[row] = family.prompt_len
        self.known[row] = self.received[row] = length
        self.computed[row] = context
        self.end[row] = family.end
        self.min_tokens[row] = request.params.min_tokens
        self.cached[row] = family.cached_tokens
        self.tokens[row, :length] = sequence.tokens
        self._stops[row] = -1
        if len(request.stop_token_ids) <= STOP_WIDTH:
            self._stops[row, : len(request.stop_token_ids)] = list(request.stop_token_ids)
        else:
            self._many_stops[row] = request.stop_token_ids
        self.sequences[row] = sequence
        sequence.row = row
        place = np.searchsorted(self.rank[self.order], sequence.rank)
        self.order = np.insert(self.order, place, row)
        return row

    def clear(self, row: int) -> Sequence:
        """Free a row; steps in flight no longer count for it. Returns its sequence, with the tokens received."""
        sequence = self.sequences[row]
        assert sequence is not None
        sequence.tokens = self.tokens[row, : self.received[row]].copy()
        sequence.row = -1
        self.sequences[row] = None
        self.epoch[row] += 1
        self._many_stops.pop(row, None)
        self._unused.append(row)
        self.order = self.order[self.order != row]
        return sequence

    def receive(self, rows: Ints, tokens: Ints) -> None:
        """Append one token to each of `rows`."""
        self.tokens[rows, self.received[rows]] = tokens
        self.received[rows] += 1

    def is_stop(self, rows: Ints, tokens: Ints) -> Bools:
        """Whether the token just received ends its row: a stop token after the first `min_tokens` of output."""
        stops: Bools = (self._stops[rows] == tokens[:, None]).any(axis=1)
        for row, ids in self._many_stops.items():
            mine = (rows == row).nonzero()[0]
            stops[mine] = [int(token) in ids for token in tokens[mine]]
        stops &= self.received[rows] - self.prompt_len[rows] > self.min_tokens[rows]
        return stops
