"""What one engine step does, as plain arrays: written by the scheduler, carried out by quire_runtime.execute."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quire_runtime.kv.shared import SharedBlocks
from quire_runtime.scheduler.request import Request

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence takes `row` before this step: the row's tables are written anew.

    token_ids: int32, every token known now (prompt, and after a preemption the output so far), len >= 1.
    num_prompt_tokens: how many of them are prompt; the rest is output (penalties and min_tokens count it).
    choice: 0..n-1 within the request.
    """

    row: int
    request: Request
    choice: int
    token_ids: Ints
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass over `len(rows)` sequences.

    Batch order: sequences with one query token first (`num_decodes` of them), then longer queries.

    rows          int32 [n]  the row of each batch slot
    query_lens    int32 [n]  tokens computed in this step, >= 1
    context_lens  int32 [n]  tokens whose K and V are in the cache before this step; the query's first position
    samples       bool  [n]  the last query token is the last known token, so a new one is drawn. Its position is
                             context + query; the executor writes it into the row's token table by itself.
    admissions               rows to initialise first
    table_rows, table_columns, table_blocks  int32 [m]  block-table entries to write first
    copy_sources, copy_targets               int32 [k]  whole blocks to copy first, in every layer (copy-on-write)
    shared                   what decodes begin with alike, where it pays

    A decode's input token may have been drawn by the step just launched: the executor reads it from the row, on the
    device.
    """

    rows: Ints
    query_lens: Ints
    context_lens: Ints
    samples: Bools
    num_decodes: int
    admissions: list[Admission]
    table_rows: Ints
    table_columns: Ints
    table_blocks: Ints
    copy_sources: Ints
    copy_targets: Ints
    shared: SharedBlocks | None = None


@dataclass(frozen=True, slots=True)
class StepOutputs:
    """What a finished step means for its requests; one entry a sequence that got a token or ended.

    handles int64 [m], choices int32 [m], tokens int32 [m] (-1: ended without a token), finish uint8 [m] (FinishReason),
    slots int32 [m]: the batch slot in the plan, where logprobs are to be found (-1: none).
    cached int32 [m]: prompt tokens that the request found in the prefix cache when it first ran.
    """

    handles: NDArray[np.int64]
    choices: Ints
    tokens: Ints
    finish: NDArray[np.uint8]
    slots: Ints
    cached: Ints
