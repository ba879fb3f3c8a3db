"""What attention needs to know about a mixed batch of prefills and decodes."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Leading blocks that several decodes of a batch have in common, so that their keys need be read once for all.

    lens   int32 [num_decodes]  leading keys that the sequence shares, a multiple of the block size; 0: it shares none
    owner  int32 [1]            a sequence that shares them: its table names the blocks

    Every sequence that shares any shares the same, and its query token comes after them.
    """

    lens: Tensor
    owner: Tensor


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Sequences with one query token come first (`num_decodes`), then longer queries. T query tokens, n sequences.

    positions      int64 [T]        position of each query token in its sequence
    slots          int64 [T]        block * block_size + offset where its K and V are stored
    query_starts   int32 [n + 1]    first query token of each sequence
    seq_lens       int32 [n]        context + query: keys to attend to
    block_tables   int32 [n, >= max(ceil(seq_len / block_size))]
    query_starts_cpu, seq_lens_cpu  the same as plain lists, for launch sizes and the CPU path; no device sync
    step_work      what is worked out once a step for all layers that follow: lists of work, and room for partial
                   results; by who made it and what it depends on. A batch of other lengths begins with an empty one
    parts          batches to attend to in its place, which together have its query tokens; (): itself
    shared         what decodes share, if a kernel may make use of it; it changes no result
    """

    positions: Tensor
    slots: Tensor
    query_starts: Tensor
    seq_lens: Tensor
    block_tables: Tensor
    num_decodes: int
    query_starts_cpu: list[int]
    seq_lens_cpu: list[int]
    block_size: int
    step_work: dict[tuple[object, ...], Any] = field(default_factory=dict, compare=False, repr=False)
    parts: "tuple[AttentionBatch, ...]" = ()
    shared: SharedPrefix | None = None
