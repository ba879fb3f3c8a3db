"""CUDA graphs for decode steps: one full graph, from row numbers to tokens, for each of a few padded batch sizes."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire_kernels.batch import SharedPrefix
from quire_kernels.linear import NEW_KERNELS
from quire_kernels.tuning import FEW
from quire_runtime.execute.recordings import GraphMemory, Recordings
from quire_runtime.execute.rows import Rows
from quire_runtime.kv.shared import FEWEST
from quire_runtime.scheduler.plan import StepPlan

HEADER = 4
"""Words before the first array of a step's inputs; word 0 says which of the token buffers the step fills, word 1 which
slot owns shared blocks."""


@dataclass(frozen=True, slots=True)
class Slots:
    """A padded decode batch on the device: rows, contexts, new_blocks int32 [b] (-1: no new block); turn int32 [1];
    shared: what its sequences may share, None if the graph is for those that share nothing."""

    rows: Tensor
    contexts: Tensor
    new_blocks: Tensor
    turn: Tensor
    shared: SharedPrefix | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """Of n sequences: logits [n, V] and the likeliest tokens int32 [n], which later steps overwrite; rows int32 [n] and
    positions int32 [n] of the new tokens."""

    logits: Tensor
    tokens: Tensor
    rows: Tensor
    positions: Tensor


Decode = Callable[[Slots, Tensor], tuple[Tensor, Tensor]]
"""(padded batch, token buffers int32 [turns, >= b] of which row `turn` is filled) -> logits [b, V], positions of the
new tokens int32 [b]"""


def graph_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, then every 8 up to 64, every 16 up to 256, every 32 up to 512; the largest covers max_num_seqs."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 513, 32)]
    kept = [size for size in sizes if size < max_num_seqs]
    return [*kept, min(max_num_seqs, 512)]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Of `size` slots: the graph, and where it leaves logits and positions."""

    size: int
    graph: torch.cuda.CUDAGraph
    logits: Tensor
    positions: Tensor


def covering(sizes: list[int], has_shared: bool) -> list[tuple[int, bool]]:
    """Shapes that can carry out a decode of the first of `sizes` (ascending), the cheapest first; none is more than
    twice as large. What is shared need not be read as shared.
    """
    near = [size for size in sizes if size <= 2 * sizes[0]]
    kinds = (True, False) if has_shared else (False,)
    return [(size, kind) for size in near for kind in kinds]


class DecodeGraphs:
    """Replays a recorded decode where one fits.

    Of each size there may be a second graph for sequences that share blocks, whose keys it reads once.
    Padding slots use the spare row, whose block table names block 0 only. Launch sizes are those of the longest
    sequence, so that they hold for every replay. At most `depth` steps may be unread: tokens of the last `depth` steps
    and their inputs stay where they are.
    """

    def __init__(self, decode: Decode, tables: Rows, max_num_seqs: int, depth: int, memory: GraphMemory) -> None:
        self._decode = decode
        self._tables = tables
        self._memory = memory
        self.sizes = graph_sizes(max_num_seqs)
        words = HEADER + 4 * self.sizes[-1]
        self._inputs = torch.zeros(words, dtype=torch.int32, device=memory.device)
        self._hosts = [torch.zeros(words, dtype=torch.int32, pin_memory=True) for _ in range(depth + 1)]
        self._tokens = torch.zeros(depth + 2, self.sizes[-1], dtype=torch.int32, device=memory.device)
        # What runs for a capture must not touch tokens that are still on their way to the host.
        self._capture_turn = depth + 1
        shapes = [(size, False) for size in self.sizes] + [(size, True) for size in self.sizes if size >= FEWEST]
        self.recordings: Recordings[tuple[int, bool], _Recorded] = Recordings(shapes, self._record, memory.has_room)
        self._turn = 0
        self._slot_of_row = np.zeros(max_num_seqs + 1, np.int64)

    def run(self, plan: StepPlan) -> Decoded | None:
        """Carry out a plan of nothing but decodes that draw; None where no graph fits (run it eagerly)."""
        n = len(plan.rows)
        if n != plan.num_decodes or plan.admissions or len(plan.copy_sources) or not plan.samples.all():
            return None
        sizes = self.sizes[bisect_left(self.sizes, n) :]
        if not sizes:
            return None
        has_shared = plan.shared is not None
        recorded = self.recordings.find((sizes[0], has_shared), covering(sizes, has_shared))
        if recorded is None:
            return None
        self._turn = (self._turn + 1) % len(self._hosts)
        pinned = self._hosts[self._turn]
        self._fill(plan, pinned.numpy(), recorded.size)
        words = HEADER + 4 * recorded.size
        self._inputs[:words].copy_(pinned[:words], non_blocking=True)
        recorded.graph.replay()
        rows = self._slots(recorded.size, False).rows[:n]
        return Decoded(recorded.logits[:n], self._tokens[self._turn, :n], rows, recorded.positions[:n])

    def rehearse(self) -> None:
        """Run what `warm_up` records, without recording it, and a size of each other kind."""
        first = self._first()
        others = [next((size for size in self.sizes if size > rows), None) for rows in NEW_KERNELS]
        first += [(size, False) for size in others if size is not None and (size, False) not in first]
        for size, has_shared in first:
            self._decode(self._padding(size, has_shared), self._tokens)

    def warm_up(self) -> None:
        """Record the smallest sizes, and one of each kind that has kernels of its own."""
        for shape in self._first():
            self._memory.rehearse(self._decoding(shape))
            self.recordings.record(shape)

    def _first(self) -> list[tuple[int, bool]]:
        more = [size for size in self.sizes if size > FEW][:1]
        shareable = [(size, has_shared) for size in more for has_shared in (False, True)]
        # Kernels for shared blocks differ between few and many sequences.
        most = [(size, True) for size in self.sizes[-1:] if size > FEW and size not in more]
        return [*((size, False) for size in self.sizes[:4]), *shareable, *most]

    def _record(self, shape: tuple[int, bool]) -> _Recorded:
        graph, (logits, positions) = self._memory.record(self._decoding(shape))
        return _Recorded(shape[0], graph, logits, positions)

    def _decoding(self, shape: tuple[int, bool]) -> Callable[[], tuple[Tensor, Tensor]]:
        slots = self._padding(*shape)
        return lambda: self._decode(slots, self._tokens)

    def _padding(self, size: int, has_shared: bool) -> Slots:
        """A batch of nothing but padding, whose tokens go where no step's do."""
        inputs = np.full(HEADER + 4 * size, -1, np.int32)
        inputs[:HEADER] = self._capture_turn, 0, 0, 0
        rows, contexts, _, lens = inputs[HEADER:].reshape(4, size)
        rows[:], contexts[:], lens[:] = self._tables.spare, 0, 0
        self._inputs[: len(inputs)] = torch.from_numpy(inputs)
        return self._slots(size, has_shared)

    def _slots(self, size: int, has_shared: bool) -> Slots:
        rows, contexts, new_blocks, lens = self._inputs[HEADER : HEADER + 4 * size].view(4, size)
        shared = SharedPrefix(lens, self._inputs[1:2]) if has_shared else None
        return Slots(rows, contexts, new_blocks, self._inputs[:1], shared)

    def _fill(self, plan: StepPlan, host: np.ndarray, size: int) -> None:
        n = len(plan.rows)
        host[0] = self._turn
        rows, contexts, new_blocks, lens = host[HEADER : HEADER + 4 * size].reshape(4, size)
        rows[:n], rows[n:] = plan.rows, self._tables.spare
        contexts[:n], contexts[n:] = plan.context_lens, 0
        new_blocks[:] = -1
        lens[:] = 0
        if plan.shared is not None:
            host[1], lens[:n] = plan.shared.owner, plan.shared.lens
        if len(plan.table_rows):
            # A decode grows by the block of its query token, if at all.
            self._slot_of_row[plan.rows] = np.arange(n)
            new_blocks[self._slot_of_row[plan.table_rows]] = plan.table_blocks
