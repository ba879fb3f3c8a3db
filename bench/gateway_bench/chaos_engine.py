"""One simulated engine behind the real server: `python -m gateway_bench.chaos_engine PORT KEY GAP_S`.

It answers every prompt with the same tokens, one each GAP_S, goes on from the output tokens that a resumed request
brings, and tells which prompts it has cached. SIGUSR1 ends its KV event streams.
"""

import asyncio
import signal
import sys
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path

import uvicorn
import uvloop

from gateway_bench.chaos_cache import SimulatedCache
from quire_runtime.engine.messages import EngineReady, EngineStats
from quire_runtime.engine.request import EngineRequest
from quire_runtime.engine.stream import ChoiceDelta, Stream
from quire_runtime.scheduler.request import FinishReason
from quire_runtime.server.app import create_app
from quire_runtime.server.config import ServerConfig
from quire_text.tokenizer import Tokenizer

MODEL = Path(__file__).parents[2] / "models" / "quire-tiny"
TEXT = "What does the scheduler do when a request waits and the cache is full? It preempts the latest. "
REVISION, BLOCK_SIZE, BLOCKS = "simulated", 16, 2_000
"""So few blocks that it evicts: about as many as 500 prompts fill."""


class SimulatedClient:
    """What the server needs of an engine (`quire_runtime.server.client.EngineClient`), without one."""

    def __init__(self, tokens: list[int], gap_s: float) -> None:
        self._tokens = tokens
        self._gap_s = gap_s
        self._playing: dict[Stream, asyncio.Task[None]] = {}
        self.is_alive = True
        self.heartbeat_age_s = 0.0
        self.stats = EngineStats(kv_blocks_total=BLOCKS)
        epoch = uuid.uuid4().hex
        self.info = EngineReady(REVISION, BLOCK_SIZE, BLOCKS + 1, 4096, 512, epoch, {})
        self._cache = SimulatedCache(REVISION, epoch, BLOCK_SIZE, BLOCKS)

    def open(self, request: EngineRequest) -> Stream:
        made = len(request.outputs[0]) if request.outputs else 0
        most = request.params.max_tokens or 16
        self._cache.compute(request.token_ids, request.cache_salt)
        self.stats.num_running += 1
        self.stats.kv_blocks_used = len(self._cache)
        stream = Stream(1, self._close)
        self._playing[stream] = asyncio.create_task(self._play(stream, made, most))
        return stream

    def _close(self, stream: Stream) -> None:
        self._playing.pop(stream).cancel()
        self.stats.num_running -= 1

    async def _play(self, stream: Stream, made: int, most: int) -> None:
        for number in range(made, most):
            await asyncio.sleep(self._gap_s)
            finish = FinishReason.LENGTH if number == most - 1 else FinishReason.NONE
            cached = 0 if number == made else None
            token = self._tokens[number % len(self._tokens)]
            if stream.add(ChoiceDelta(0, [token], finish, cached_tokens=cached)):
                stream.tell()

    def kv_events(self) -> AsyncGenerator[bytes, None]:
        return self._cache.events()

    def cut(self) -> None:
        self._cache.cut()


async def main(port: int, key: str, gap_s: float) -> None:
    tokenizer = Tokenizer.from_directory(MODEL)
    client = SimulatedClient(tokenizer.encode(TEXT, add_special_tokens=False), gap_s)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, client.cut)
    app = create_app(client, tokenizer, ServerConfig.of(served_model_name=["m"], internal_key=key))
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, log_level="error", access_log=False, timeout_keep_alive=75
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
