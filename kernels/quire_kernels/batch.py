"""What attention needs to know about a mixed batch of prefills and decodes."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Sequences with one query token come first (`num_decodes`), then longer queries. T query tokens, n sequences.

    positions      int64 [T]        position of each query token in its sequence
    slots          int64 [T]        block * block_size + offset where its K and V are stored
    query_starts   int32 [n + 1]    first query token of each sequence
    seq_lens       int32 [n]        context + query: keys to attend to
    block_tables   int32 [n, >= max(ceil(seq_len / block_size))]
    query_starts_cpu, seq_lens_cpu  the same as plain lists, for launch sizes and the CPU path; no device sync
    layouts        what the CPU path works out once a step and every layer uses
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
    layouts: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    parts: "tuple[AttentionBatch, ...]" = ()
