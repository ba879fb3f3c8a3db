"""A request as the scheduler sees it: ids and numbers, no text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from quire_api.sampling import SamplingParams


class FinishReason(IntEnum):
    """Why a choice ended; NONE while it runs. Wire values: append only."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt with `params.n` choices.

    handle: chosen by the caller, unique among live requests; names the request in every output.
    seed: already resolved (never None); sampling noise is keyed on (seed, choice, position).
    max_tokens: already resolved against the window, >= 1.
    priority: lower runs first, as vLLM's.
    """

    handle: int
    token_ids: Sequence[int] | NDArray[np.int32]
    params: SamplingParams
    seed: int
    max_tokens: int
    priority: int = 0
    cache_salt: str = ""
    is_warming: bool = False
    """No client asked for it: it is to fill the prefix cache, and counts neither as a query nor as a hit there."""
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    """Tokens that end the text after min_tokens: the model's end-of-sequence ids unless ignore_eos, and its own."""
    outputs: tuple[list[int], ...] = ()
    """Of a request that another engine began: the output of each choice so far; () for a new one."""
    ended: frozenset[int] = frozenset()
    """Choices that have ended there."""

    @property
    def is_resumed(self) -> bool:
        return bool(self.outputs)
