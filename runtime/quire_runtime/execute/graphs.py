"""CUDA graphs for decode steps: one full graph, from row numbers to logits, for each of a few padded batch sizes."""

from collections.abc import Callable

import torch
from torch import Tensor

Decode = Callable[[Tensor, Tensor, list[int], int], Tensor]
"""(rows int32 [b], contexts int32 [b], seq_lens_cpu, block-table columns) -> logits [b, V]"""


def graph_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, then every 8 up to 64, every 16 up to 256, every 32 up to 512; the largest covers max_num_seqs."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 513, 32)]
    kept = [size for size in sizes if size < max_num_seqs]
    return [*kept, min(max_num_seqs, 512)]


class DecodeGraphs:
    """Replays a captured decode where one fits; a size is captured the second time it is asked for, or by `capture`.

    Padding slots use the spare row, whose block table names block 0 only. The longest sequence is assumed at capture,
    so that launch sizes hold for every replay.
    """

    def __init__(
        self,
        decode: Decode,
        max_num_seqs: int,
        max_seq_len: int,
        num_columns: int,
        spare_row: int,
        device: torch.device,
    ) -> None:
        self._decode = decode
        self._max_seq_len = max_seq_len
        self._num_columns = num_columns
        self._spare_row = spare_row
        self.sizes = graph_sizes(max_num_seqs)
        self._rows = torch.full((self.sizes[-1],), spare_row, dtype=torch.int32, device=device)
        self._contexts = torch.zeros(self.sizes[-1], dtype=torch.int32, device=device)
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._asked: set[int] = set()
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, rows: Tensor, contexts: Tensor) -> Tensor | None:
        """Logits [n, V] of a decode of n rows; None where no graph of that size stands yet (run it eagerly)."""
        n = len(rows)
        size = next((size for size in self.sizes if size >= n), None)
        if size is None:
            return None
        if size not in self._graphs:
            if size not in self._asked:
                self._asked.add(size)
                return None
            self.capture(size)
        self._fill(rows, contexts, size)
        graph, logits = self._graphs[size]
        graph.replay()
        return logits[:n]

    def capture(self, size: int) -> None:
        """Record the graph for `size` slots; they run once before, so that every kernel is compiled."""
        self._rows[:size] = self._spare_row
        self._contexts[:size] = 0
        arguments = (self._rows[:size], self._contexts[:size], [self._max_seq_len] * size, self._num_columns)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._decode(*arguments)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._decode(*arguments)
        self._graphs[size] = (graph, logits)

    def _fill(self, rows: Tensor, contexts: Tensor, size: int) -> None:
        n = len(rows)
        self._rows[:n] = rows
        self._contexts[:n] = contexts
        self._rows[n:size] = self._spare_row
        self._contexts[n:size] = 0
