"""CUDA graphs for short steps that hold prompts: launching kernels one by one takes longer than running them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire_kernels.tuning import OVERLAPPED
from quire_runtime.execute.recordings import GraphMemory, Recordings
from quire_runtime.execute.rows import Rows
from quire_runtime.scheduler.plan import StepPlan

HEADER = 4
"""Words before the first array of a step's inputs; word 0 says which of the token buffers the step fills."""
TOKENS = (16, 32, 64, 96, 128, 192, 256, 320, 384, 512, 640, 768, 896, 1024)
"""Numbers of tokens that a batch is padded to. 448 is left out: on an H200 such a step of an 8B model takes 14.6 ms and
one of 512 takes 11.6, for cuBLAS is that much slower there."""
SEQUENCES = (1, 4, 16, 64, 256)


@dataclass(frozen=True, slots=True)
class MixedSlots:
    """A padded batch of n sequences on the device, int32: rows, contexts, draw_rows, draw_positions [n], starts
    [n + 1], turn [1]. What a sequence draws is recorded at its draw row and position; the spare row's where it does
    not draw.
    """

    rows: Tensor
    contexts: Tensor
    draw_rows: Tensor
    draw_positions: Tensor
    starts: Tensor
    turn: Tensor


@dataclass(frozen=True, slots=True)
class Replayed:
    """Of each sequence: logits [n, V] after its last token and the likeliest token int32 [n]; overwritten later."""

    logits: Tensor
    tokens: Tensor


Forward = Callable[[MixedSlots, Tensor, int, bool], Tensor]
"""(padded batch, token buffers int32 [turns, >= n], padded number of tokens, are there decodes) -> logits [n, V]"""


def sequence_sizes(most: int) -> list[int]:
    """Numbers of sequences that a batch is padded to, where at most `most` run; none is above the last of SEQUENCES."""
    most = min(most, SEQUENCES[-1])
    return [*(n for n in SEQUENCES if n < most), most]


@dataclass(frozen=True, slots=True, order=True)
class MixedShape:
    """Padded numbers of tokens and of sequences, and whether any of them decodes."""

    tokens: int
    sequences: int
    has_decodes: bool


def shapes(sequences: list[int]) -> list[MixedShape]:
    """All shapes that a step may have, those of few sequences last: a server with little to do can wait for them."""
    return [
        MixedShape(tokens, size, has_decodes)
        for has_decodes in (True, False)
        for size in reversed(sequences)
        for tokens in TOKENS
        if tokens >= size or size == sequences[0]
    ]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The graph of a shape, and where it leaves logits."""

    shape: MixedShape
    graph: torch.cuda.CUDAGraph
    logits: Tensor


def covering(shape: MixedShape, sequences: list[int]) -> list[MixedShape]:
    """Shapes that can carry out a step of this one, the cheapest first; none has more than twice the tokens."""
    return [
        MixedShape(tokens, size, shape.has_decodes)
        for tokens in TOKENS
        if shape.tokens <= tokens <= 2 * shape.tokens
        for size in sequences
        if size >= shape.sequences
    ]


class MixedGraphs:
    """Replays a recorded step where one fits.

    Shapes are padded: tokens to TOKENS, sequences to SEQUENCES. At most `depth` steps may be unread.
    """

    def __init__(self, forward: Forward, tables: Rows, max_num_seqs: int, depth: int, memory: GraphMemory) -> None:
        self._forward = forward
        self._tables = tables
        self._memory = memory
        self.sequences = sequence_sizes(max_num_seqs)
        words = HEADER + 5 * self.sequences[-1] + 1
        self._inputs = torch.zeros(words, dtype=torch.int32, device=memory.device)
        self._hosts = [torch.zeros(words, dtype=torch.int32, pin_memory=True) for _ in range(depth + 1)]
        self._tokens = torch.zeros(depth + 2, self.sequences[-1], dtype=torch.int32, device=memory.device)
        # What runs for a capture must not touch tokens that are still on their way to the host.
        self._capture_turn = depth + 1
        self.recordings: Recordings[MixedShape, _Recorded] = Recordings(
            shapes(self.sequences), self._record, memory.has_room
        )
        self._turn = 0

    def run(self, plan: StepPlan, starts: NDArray[np.int32]) -> Replayed | None:
        """Carry out a plan whose tables have been written; None where no graph fits (run it eagerly).

        starts int32 [n + 1]: first query token of each sequence.
        """
        n = len(plan.rows)
        tokens = next((size for size in TOKENS if size >= starts[-1]), None)
        size = next((size for size in self.sequences if size >= n), None)
        if tokens is None or size is None:
            return None
        asked = MixedShape(tokens, size, plan.num_decodes > 0)
        recorded = self.recordings.find(asked, covering(asked, self.sequences))
        if recorded is None:
            return None
        size = recorded.shape.sequences
        self._turn = (self._turn + 1) % len(self._hosts)
        words = HEADER + 5 * size + 1
        self._fill(plan, starts, self._hosts[self._turn].numpy()[:words], size)
        self._inputs[:words].copy_(self._hosts[self._turn][:words], non_blocking=True)
        recorded.graph.replay()
        return Replayed(recorded.logits[:n], self._tokens[self._turn, :n])

    def rehearse(self) -> None:
        """Run what `warm_up` records, without recording it, and a shape whose kernels do not overlap."""
        long = next(tokens for tokens in TOKENS if tokens > OVERLAPPED)
        for shape in [*self._first(), MixedShape(long, self.sequences[-1], True)]:
            self._running(shape)()

    def warm_up(self) -> None:
        """Record the smallest shapes, with and without decodes, so that no request waits for a kernel's compilation."""
        for shape in self._first():
            self._memory.rehearse(self._running(shape))
            self.recordings.record(shape)

    def _first(self) -> list[MixedShape]:
        return [MixedShape(TOKENS[0], self.sequences[0], False), MixedShape(TOKENS[0], self.sequences[-1], True)]

    def _record(self, shape: MixedShape) -> _Recorded:
        graph, logits = self._memory.record(self._running(shape))
        return _Recorded(shape, graph, logits)

    def _running(self, shape: MixedShape) -> Callable[[], Tensor]:
        slots = self._padding(shape.sequences)
        return lambda: self._forward(slots, self._tokens, shape.tokens, shape.has_decodes)

    def _padding(self, size: int) -> MixedSlots:
        """A batch of nothing but padding, whose tokens go where no step's do."""
        inputs = np.zeros(HEADER + 5 * size + 1, np.int32)
        inputs[0] = self._capture_turn
        inputs[HEADER : HEADER + size] = inputs[HEADER + 2 * size : HEADER + 3 * size] = self._tables.spare
        self._inputs[: len(inputs)] = torch.from_numpy(inputs)
        return self._slots(size)

    def _slots(self, size: int) -> MixedSlots:
        words = self._inputs[HEADER : HEADER + 5 * size + 1]
        rows, contexts, draw_rows, draw_positions = words[: 4 * size].view(4, size)
        return MixedSlots(rows, contexts, draw_rows, draw_positions, words[4 * size :], self._inputs[:1])

    def _fill(self, plan: StepPlan, starts: NDArray[np.int32], host: NDArray[np.int32], size: int) -> None:
        n = len(plan.rows)
        host[0] = self._turn
        rows, contexts, draw_rows, draw_positions = host[HEADER : HEADER + 4 * size].reshape(4, size)
        rows[:n], rows[n:] = plan.rows, self._tables.spare
        contexts[:n], contexts[n:] = plan.context_lens, 0
        draw_rows[:] = self._tables.spare
        draw_positions[:] = 1
        np.copyto(draw_rows[:n], plan.rows, where=plan.samples)
        np.copyto(draw_positions[:n], plan.context_lens + plan.query_lens, where=plan.samples)
        first_tokens = host[HEADER + 4 * size :]
        first_tokens[: n + 1] = starts
        first_tokens[n + 1 :] = starts[-1]
