"""What the server needs of an engine."""

from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Protocol

from quire_api.sampling import SamplingParams
from quire_api.warming import HotPrefix
from quire_runtime.engine.messages import EngineReady, EngineStats
from quire_runtime.engine.stream import Stream


class EngineClient(Protocol):
    """Implemented by quire_runtime.engine.client.AsyncEngineClient, which says what raises what."""

    stats: EngineStats
    info: EngineReady | None

    @property
    def is_alive(self) -> bool: ...

    @property
    def heartbeat_age_s(self) -> float: ...

    def open(
        self,
        token_ids: list[int],
        params: SamplingParams,
        request_id: str,
        priority: int = 0,
        cache_salt: str = "",
        outputs: Sequence[list[int]] = (),
        ended: Collection[int] = (),
        is_warming: bool = False,
    ) -> Stream:
        """A request sent to the engine; closing it early aborts the request."""
        ...

    def kv_events(self) -> AsyncGenerator[bytes, None]:
        """The prefix cache as a stream of quire_api.kv_events; ends with the engine."""
        ...

    async def hot_prefixes(self, max_prefixes: int, max_tokens: int) -> list[HotPrefix]:
        """The cached prefixes that prompts have found most often, the hottest first."""
        ...
