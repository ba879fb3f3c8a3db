"""One replica's KV events, frame by frame, into the index: what may follow on what, and how far it can be trusted.

    FALLBACK --stream opens--> DEGRADED --snapshot whole--> EXACT --gap, restart, silence--> DEGRADED
    DEGRADED --no snapshot within PATIENCE_S--> FALLBACK

Times are seconds on any one clock.
"""

from collections import Counter
from dataclasses import dataclass, field

from quire_api import kv_events
from quire_api.blocks import FORMAT_VERSION
from quire_api.kv_events import Batch, Cleared, Frame, Heartbeat, Keys, Removed, Snapshot, Stored, split_keys
from quire_api.wire import IndexMode
from quire_gateway.index import INDEX_KEY_BYTES, OutOfStep, PrefixIndex

LOSS_CAUSES = ("cut", "silent", "gap", "malformed")
SILENCE_S = 3.0
"""A stream that brought nothing for so long is given up."""
PATIENCE_S = 3.0


@dataclass(slots=True)
class FeedCounts:
    """What the feeds of one deployment have counted, those of replicas that are gone included."""

    losses: Counter[str] = field(default_factory=Counter)
    """Ends of exactness, by one of `LOSS_CAUSES`."""
    blocks_told: int = 0
    """Blocks stored and removed, snapshots included."""


class Feed:
    """Applies frames to `index`; `problem` says why they do not come, or what was wrong with the last ones."""

    def __init__(self, index: PrefixIndex, replica: str, counts: FeedCounts | None = None) -> None:
        self.counts = FeedCounts() if counts is None else counts
        self._index = index
        self._replica = replica
        self._sequence = 0
        self._missing = 0
        self._patience_ends = float("-inf")
        self.epoch = ""
        self.problem = "no stream yet"

    def mode(self, now: float) -> IndexMode:
        if self._index.is_exact(self._replica):
            return "EXACT"
        return "DEGRADED" if now < self._patience_ends else "FALLBACK"

    def opened(self, now: float) -> None:
        """A stream has begun: a snapshot is on its way."""
        self.problem = "snapshot awaited"
        self._patience_ends = now + PATIENCE_S

    def lost(self, now: float, cause: str, why: str) -> None:
        """The stream has ended, or is of no more use."""
        if self._index.is_exact(self._replica):
            self.counts.losses[cause] += 1
            self._patience_ends = now + PATIENCE_S
        self._index.lose(self._replica)
        self.problem = why

    def refused(self, why: str) -> None:
        """There will be no stream for a while."""
        self._index.lose(self._replica)
        self._patience_ends = float("-inf")
        self.problem = why

    def apply(self, frame: Frame, now: float) -> None:
        """Take over the next frame of the stream.

        Raises:
            OutOfStep, MalformedEvents: it cannot be; call `lost`, and open a new stream.
        """
        match frame:
            case Batch():
                self._follow(frame.epoch, frame.sequence, 1)
                for operation in frame.operations:
                    self._change(operation)
            case Heartbeat():
                self._follow(frame.epoch, frame.sequence, 0)
            case Snapshot():
                self._begin(frame)
            case Keys():
                self._take(split_keys(frame.keys, INDEX_KEY_BYTES))
                self._patience_ends = now + PATIENCE_S

    def _begin(self, snapshot: Snapshot) -> None:
        if (snapshot.version, snapshot.block_format) != (kv_events.KV_EVENTS_VERSION, FORMAT_VERSION):
            told = f"version {snapshot.version}, block format {snapshot.block_format}"
            raise kv_events.MalformedEvents(f"{told} are not this gateway's")
        if snapshot.epoch != self.epoch:
            self._index.clear_replica(self._replica)
        self.epoch = snapshot.epoch
        self._sequence = snapshot.sequence
        self._missing = snapshot.count
        self._index.begin(self._replica, snapshot.capacity)
        self._take([])

    def _take(self, keys: list[bytes]) -> None:
        self._missing -= len(keys)
        if self._missing < 0:
            raise OutOfStep("a snapshot has more keys than it said")
        self._index.store(self._replica, keys)
        self.counts.blocks_told += len(keys)
        if not self._missing:
            self._index.finish(self._replica)
            self.problem = ""

    def _follow(self, epoch: str, sequence: int, step: int) -> None:
        if self._missing:
            raise OutOfStep(f"{self._missing} keys of the snapshot are missing")
        if (epoch, sequence) != (self.epoch, self._sequence + step):
            raise OutOfStep(f"batch {sequence} came after {self._sequence}")
        self._sequence = sequence

    def _change(self, operation: kv_events.Operation) -> None:
        match operation:
            case Stored():
                keys = split_keys(operation.keys, INDEX_KEY_BYTES)
                self._index.store(self._replica, keys)
                self.counts.blocks_told += len(keys)
            case Removed():
                keys = split_keys(operation.keys, INDEX_KEY_BYTES)
                self._index.remove(self._replica, keys)
                self.counts.blocks_told += len(keys)
            case Cleared():
                self._index.clear(self._replica)
