"""What the server needs of an engine."""

from collections.abc import AsyncGenerator
from typing import Protocol

from quire_api.warming import HotPrefix
from quire_runtime.engine.messages import EngineReady, EngineStats
from quire_runtime.engine.request import EngineRequest
from quire_runtime.engine.stream import Stream


class EngineClient(Protocol):
    """Implemented by quire_runtime.engine.client.AsyncEngineClient, which says what raises what."""

    stats: EngineStats
    info: EngineReady | None

    @property
    def is_alive(self) -> bool: ...

    @property
    def heartbeat_age_s(self) -> float: ...

    def open(self, request: EngineRequest) -> Stream:
        """What comes of a request sent to the engine; closing it early aborts the request."""
        ...

    def kv_events(self) -> AsyncGenerator[bytes, None]:
        """The prefix cache as a stream of quire_api.kv_events; ends with the engine."""
        ...

    async def hot_prefixes(self, max_prefixes: int, max_tokens: int) -> list[HotPrefix]:
        """The cached prefixes that prompts have found most often, the hottest first."""
        ...
