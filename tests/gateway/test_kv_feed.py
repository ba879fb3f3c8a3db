"""What the gateway knows of a replica against the engine's own prefix index, after anything that can happen between.

The engine's side is the real pool, index, log and publisher; its frames travel as bytes that can be cut anywhere.
"""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire_api import kv_events
from quire_api.blocks import root_key
from quire_gateway.index import INDEX_KEY_BYTES, OutOfStep, PrefixIndex
from quire_gateway.kv_feed import PATIENCE_S, Feed
from quire_runtime.engine.kv_publisher import KVPublisher
from quire_runtime.kv.events import EventLog
from quire_runtime.kv.pool import BlockPool
from quire_runtime.kv.prefix import PrefixChain
from quire_runtime.kv.prefix import PrefixIndex as EngineIndex

SIZE = 2
CAPACITY = 12
ROOT = root_key("m", SIZE)
# Chains over a small alphabet share prefixes often.
prompts = st.lists(st.integers(0, 1), max_size=6).map(lambda path: [token for step in path for token in (step, step)])


class Engine:
    """One start of an engine: sequences take blocks, register them, and give them back."""

    def __init__(self, epoch, outbox):
        self.pool = BlockPool(CAPACITY + 1)
        self.log = EventLog()
        self.index = EngineIndex(self.pool, SIZE, self.log)
        self.running = []
        self.publisher = KVPublisher(
            self.log,
            self.index.keys,
            epoch=epoch,
            block_size=SIZE,
            capacity=CAPACITY,
            post=lambda make: outbox.append(make()),
            heartbeat_s=0.0,
        )

    def run(self, tokens):
        contents = np.array(tokens, np.int32).reshape(-1, SIZE)
        chain = PrefixChain(ROOT)
        found = self.index.lookup(chain, contents)
        self.pool.share(found)
        if len(contents) - len(found) > self.pool.num_available:
            self.pool.release(found[::-1])
            return
        blocks = np.concatenate((found, self.pool.take(len(contents) - len(found))))
        self.index.register(chain, blocks[len(found) :], contents[len(found) :])
        self.running.append(blocks)

    def end(self, which):
        self.pool.release(self.running.pop(which % len(self.running))[::-1])


class Histories(RuleBasedStateMachine):
    """`wire` holds what the engine sent and the gateway has not read; None: no stream is open."""

    def __init__(self):
        super().__init__()
        self.index = PrefixIndex()
        self.index.add_replica("r", CAPACITY)
        self.index.add_replica("other", CAPACITY)
        self.feed = Feed(self.index, "r")
        self.now = 0.0
        self.epochs = self.numbers = self.awaited = 0
        self.expectations = []
        self.outbox = []
        self.wire = None
        self.restart()

    def sent(self):
        """Move what the engine posted onto the wire: first a snapshot, then what is not one."""
        for each in self.outbox:
            if self.wire is not None and each.number == self.awaited:
                self.awaited = 0
                self.wire += each.frames
        self.outbox.clear()

    @rule()
    def restart(self):
        self.cut()
        self.epochs += 1
        self.engine = Engine(f"epoch {self.epochs}", self.outbox)

    @rule(tokens=prompts)
    def run(self, tokens):
        self.engine.run(tokens)

    @precondition(lambda self: self.engine.running)
    @rule(which=st.integers(0, 99))
    def end(self, which):
        self.engine.end(which)

    @rule()
    def clear(self):
        self.engine.index.clear()

    @rule()
    def step(self):
        self.engine.publisher.turn()
        self.sent()

    @rule()
    def open(self):
        self.cut()
        self.numbers += 1
        self.wire, self.reader, self.awaited = b"", kv_events.FrameReader(), self.numbers
        self.engine.publisher.watch(self.awaited)
        self.feed.opened(self.now)

    @rule()
    def cut(self):
        if self.wire is not None:
            self.wire = None
            self.feed.lost(self.now, "cut", "cut")

    @rule(tokens=prompts)
    def leave_and_come_back(self, tokens):
        """The snapshot that was asked for first still comes, to the later stream."""
        self.open()
        self.cut()
        self.engine.publisher.watch(0)
        self.engine.run(tokens)
        self.open()

    @precondition(lambda self: self.wire is not None)
    @rule(tokens=prompts)
    def lose_a_step(self, tokens):
        """As if the wire could."""
        self.step()
        whole = self.wire
        self.engine.run(tokens)
        self.step()
        if self.wire is not None:
            self.wire = whole

    @precondition(lambda self: self.wire)
    @rule(size=st.integers(1, 400))
    def deliver(self, size):
        data, self.wire = self.wire[:size], self.wire[size:]
        try:
            for frame in self.reader.read(data):
                self.feed.apply(frame, self.now)
        except OutOfStep as error:
            self.wire = None
            self.feed.lost(self.now, "gap", str(error))

    @rule(tokens=prompts)
    def pick(self, tokens):
        expectation = self.index.expect("r", self.chain(tokens))
        if expectation is not None:
            self.expectations.append(expectation)
        self.index.insert("other", self.chain(tokens))
        mine, others = self.index.match(self.chain(tokens), ["r", "other"])
        assert others == len(tokens) // SIZE
        if len({key for expectation in self.expectations for key in expectation.keys}) < CAPACITY:
            assert mine == len(tokens) // SIZE, "twins of a cold prefix meet"

    @precondition(lambda self: self.expectations)
    @rule(which=st.integers(0, 99))
    def settle(self, which):
        self.index.settle(self.expectations.pop(which % len(self.expectations)))

    @rule(seconds=st.sampled_from([0.1, PATIENCE_S]))
    def wait(self, seconds):
        self.now += seconds

    @rule(tokens=prompts)
    def match(self, tokens):
        """However it is found: as far as the blocks asked for one by one are there, from the first on."""
        chain = self.chain(tokens)
        for replica in ("r", "other"):
            alone = [self.index.match([key], [replica])[0] for key in chain]
            assert list(self.index.match(chain, [replica])) == [(*alone, 0).index(0)]

    @rule(tokens=prompts)
    def everything_comes_and_is_settled(self, tokens):
        """Let all that is under way arrive, and a heartbeat; then the engine's own cache is what an exact one holds."""
        self.step()
        self.step()
        while self.wire:
            self.deliver(1 << 20)
        while self.expectations:
            self.settle(0)
        if self.feed.mode(self.now) == "EXACT":
            held = {key[:INDEX_KEY_BYTES] for key in list(self.engine.index.keys())}
            assert self.index.stored_at("r") == held
            self.index.remove_replica("other")
            assert len(self.index) == len(held)
            self.index.add_replica("other", CAPACITY)
            chain = self.chain(tokens)
            depth = next((number for number, key in enumerate(chain) if key not in held), len(chain))
            assert list(self.index.match(chain, ["r"])) == [depth]

    @rule()
    def a_whole_snapshot_makes_it_exact(self):
        self.open()
        self.everything_comes_and_is_settled([])
        assert self.feed.mode(self.now) == "EXACT"

    @invariant()
    def bounded(self):
        assert self.index.blocks_of("r") <= CAPACITY
        assert len(self.index) <= 4 * CAPACITY

    @staticmethod
    def chain(tokens):
        chain, contents = PrefixChain(ROOT), np.array(tokens, np.int32).reshape(-1, SIZE)
        keys = [chain.key(number, block.astype("<u4").tobytes()) for number, block in enumerate(contents)]
        return [key[:INDEX_KEY_BYTES] for key in keys]


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestHistories = Histories.TestCase


def snapshot(sequence=0, count=0, capacity=CAPACITY, version=kv_events.KV_EVENTS_VERSION, block_format=1, epoch="e"):
    return kv_events.Snapshot(version, epoch, sequence, block_format, SIZE, capacity, count)


def keys(*numbers):
    return b"".join(number.to_bytes(16, "little") for number in numbers)


@pytest.fixture
def feed():
    index = PrefixIndex()
    index.add_replica("r", CAPACITY)
    return Feed(index, "r")


def test_the_mode_tells_how_far_the_index_can_be_trusted(feed):
    assert feed.mode(0.0) == "FALLBACK"
    feed.opened(0.0)
    assert feed.mode(0.0) == "DEGRADED"
    feed.apply(snapshot(count=2), 0.0)
    feed.apply(kv_events.Keys(keys(1)), 2.0)
    assert feed.mode(4.0) == "DEGRADED", "a snapshot that is coming is worth waiting for"
    feed.apply(kv_events.Keys(keys(2)), 4.0)
    assert feed.mode(1000.0) == "EXACT"
    feed.lost(1000.0, "cut", "somebody pulled the plug")
    assert (feed.mode(1000.0), feed.mode(1000.0 + PATIENCE_S)) == ("DEGRADED", "FALLBACK")
    feed.lost(1002.0, "cut", "still nobody there")
    assert feed.mode(1000.0 + PATIENCE_S) == "FALLBACK", "failing again does not prolong the wait"
    assert (feed.counts.losses, feed.problem) == ({"cut": 1}, "still nobody there")


@pytest.mark.parametrize(
    "wrong",
    [
        kv_events.Batch("e", 2, []),
        kv_events.Batch("other", 1, []),
        kv_events.Heartbeat("e", 1),
        kv_events.Batch("e", 1, [kv_events.Removed(keys(9))]),
        kv_events.Batch("e", 1, [kv_events.Stored(keys(0), keys(*range(10, 10 + CAPACITY)))]),
        kv_events.Keys(keys(2)),
    ],
)
def test_what_cannot_follow_needs_a_new_snapshot(feed, wrong):
    feed.apply(snapshot(count=1), 0.0)
    feed.apply(kv_events.Keys(keys(1)), 0.0)
    with pytest.raises(OutOfStep):
        feed.apply(wrong, 0.0)


def test_a_batch_in_the_midst_of_a_snapshot_needs_a_new_one(feed):
    feed.apply(snapshot(count=2), 0.0)
    with pytest.raises(OutOfStep):
        feed.apply(kv_events.Batch("e", 1, []), 0.0)


@pytest.mark.parametrize("wrong", [snapshot(version=2), snapshot(block_format=2)])
def test_another_version_is_not_believed(feed, wrong):
    with pytest.raises(kv_events.MalformedEvents):
        feed.apply(wrong, 0.0)


def test_a_snapshot_of_the_same_epoch_keeps_what_was_known_until_it_is_whole(feed):
    feed.apply(snapshot(count=2), 0.0)
    feed.apply(kv_events.Keys(keys(1, 2)), 0.0)
    feed.lost(0.0, "cut", "cut")
    feed.apply(snapshot(sequence=7, count=2), 0.0)
    chain = [keys(number)[:INDEX_KEY_BYTES] for number in (1, 2, 3)]
    assert list(feed._index.match(chain, ["r"])) == [2]
    feed.apply(kv_events.Keys(keys(1, 3)), 0.0)
    assert list(feed._index.match(chain, ["r"])) == [1]


def test_a_snapshot_of_another_epoch_forgets_at_once(feed):
    feed.apply(snapshot(count=1), 0.0)
    feed.apply(kv_events.Keys(keys(1)), 0.0)
    feed.apply(snapshot(count=1, epoch="next"), 0.0)
    assert list(feed._index.match([keys(1)[:INDEX_KEY_BYTES]], ["r"])) == [0]
