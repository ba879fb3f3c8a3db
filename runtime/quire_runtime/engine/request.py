"""What a front end asks of an engine."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from quire_api.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A prompt to go on from, params.n times.

    request_id: for logs. priority: the lower, the earlier. cache_salt: requests of another salt share no cached blocks.
    outputs, ended: of a request that another engine began, the output of each choice so far, and the choices that have
    ended; deltas are of what comes after. is_warming: no client asked for it.
    """

    token_ids: list[int]
    params: SamplingParams
    request_id: str
    priority: int = 0
    cache_salt: str = ""
    outputs: Sequence[list[int]] = ()
    ended: Collection[int] = ()
    is_warming: bool = False
