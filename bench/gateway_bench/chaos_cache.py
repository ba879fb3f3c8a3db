"""The prefix cache of a simulated engine: it tells what it stores and evicts, as real ones do, and has no tokens."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Sequence

from quire_api import blocks
from quire_api.kv_events import (
    HEARTBEAT_S,
    Batch,
    Heartbeat,
    Operation,
    Removed,
    Stored,
    join_keys,
    pack,
    pack_snapshot,
)


class SimulatedCache:
    """Prompts of up to `capacity` blocks in all, the least recently used evicted whole."""

    def __init__(self, revision: str, epoch: str, block_size: int, capacity: int) -> None:
        self._revision, self._epoch = revision, epoch
        self._block_size, self._capacity = block_size, capacity
        self._prompts: OrderedDict[bytes, list[bytes]] = OrderedDict()
        """By the last of its keys."""
        self._holders: Counter[bytes] = Counter()
        self._sequence = 0
        self._watchers: set[asyncio.Queue[bytes | None]] = set()

    def __len__(self) -> int:
        """Blocks that can be found."""
        return len(self._holders)

    def compute(self, token_ids: Sequence[int], salt: str) -> None:
        """Hold the blocks of a prompt."""
        root = blocks.root_key(self._revision, self._block_size, "", salt)
        keys = list(blocks.chain(root, token_ids, self._block_size))
        if not keys:
            return
        operations: list[Operation] = []
        if keys[-1] in self._prompts:
            self._prompts.move_to_end(keys[-1])
            return
        held = sum(key in self._holders for key in keys)
        if fresh := keys[held:]:
            operations.append(Stored(keys[held - 1] if held else root, join_keys(fresh)))
        self._prompts[keys[-1]] = keys
        self._holders.update(keys)
        while len(self._holders) > self._capacity:
            _, oldest = self._prompts.popitem(last=False)
            self._holders.subtract(oldest)
            gone = [key for key in oldest if not self._holders[key]]
            for key in gone:
                del self._holders[key]
            operations.append(Removed(join_keys(gone)))
        self._sequence += 1
        batch = pack(Batch(self._epoch, self._sequence, operations))
        for watcher in self._watchers:
            watcher.put_nowait(batch)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """A snapshot, and from there on every change, until `cut`."""
        watcher: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._watchers.add(watcher)
        try:
            yield pack_snapshot(self._epoch, self._sequence, self._block_size, self._capacity, list(self._holders))
            while True:
                try:
                    told = await asyncio.wait_for(watcher.get(), HEARTBEAT_S / 2)
                except TimeoutError:
                    told = pack(Heartbeat(self._epoch, self._sequence))
                if told is None:
                    return
                yield told
        finally:
            self._watchers.discard(watcher)

    def cut(self) -> None:
        """End all streams."""
        for watcher in self._watchers:
            watcher.put_nowait(None)
