"""The prefix index against a plain model of it, and its promises one by one."""

from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from quire_gateway.index import PrefixIndex

REPLICAS = ["a", "b", "c"]
# Chains over a small alphabet share prefixes often: a key is the path from its root.
chains = st.lists(st.integers(0, 2), max_size=6).map(lambda path: [bytes(path[: end + 1]) for end in range(len(path))])


class Taken:
    """A chain that notes how far it has been looked at."""

    def __init__(self, chain):
        self.chain, self.most = chain, 0

    def __len__(self):
        return len(self.chain)

    def __getitem__(self, at):
        self.most = max(self.most, min(at.stop, len(self)) if isinstance(at, slice) else at + 1)
        return self.chain[at]


class AgainstModel(RuleBasedStateMachine):
    """The model keeps one ordered dict per replica and no bit mask."""

    def __init__(self):
        super().__init__()
        self.index = PrefixIndex()
        self.model = {}
        self.capacity = {}
        self.asked = None

    @rule(replica=st.sampled_from(REPLICAS), capacity=st.integers(0, 8))
    def add(self, replica, capacity):
        self.index.add_replica(replica, capacity)
        self.capacity[replica] = capacity
        self.shrink(replica)

    @rule(replica=st.sampled_from(REPLICAS))
    def remove(self, replica):
        self.index.remove_replica(replica)
        self.model.pop(replica, None)
        self.capacity.pop(replica, None)

    @rule(replica=st.sampled_from(REPLICAS))
    def clear(self, replica):
        self.index.clear_replica(replica)
        if replica in self.model:
            self.model[replica].clear()

    @rule(replica=st.sampled_from(REPLICAS), chain=chains)
    def insert(self, replica, chain):
        self.index.insert(replica, chain)
        if replica in self.capacity:
            for key in reversed(chain[: self.capacity[replica]]):
                self.model[replica].pop(key, None)
                self.model[replica][key] = None
            self.shrink(replica)

    def shrink(self, replica):
        blocks = self.model.setdefault(replica, OrderedDict())
        while len(blocks) > self.capacity[replica]:
            blocks.popitem(last=False)

    @rule(chain=chains, asked=st.sets(st.sampled_from(REPLICAS)))
    def match(self, chain, asked):
        taken = Taken(chain)
        # Twice the same tuple, as the gateway asks it; the model may have changed in between.
        asked = tuple(sorted(asked)) if self.asked is None or set(self.asked) != asked else self.asked
        self.asked = asked
        lengths = dict(zip(asked, list(self.index.match(taken, asked)), strict=True))
        expected = {}
        for replica in asked:
            held = self.model.get(replica, {})
            expected[replica] = next((n for n, key in enumerate(chain) if key not in held), len(chain))
        assert lengths == expected
        longest = max(expected.values(), default=0)
        assert taken.most <= min(len(chain), 2 * longest + 1), "little more is hashed than the first block nobody has"

    @invariant()
    def bounded_and_exact(self):
        held = [set(blocks) for blocks in self.model.values()]
        assert len(self.index) == len(set().union(*held))
        for replica, blocks in self.model.items():
            assert self.index.blocks_of(replica) == len(blocks) <= self.capacity[replica]


AgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAgainstModel = AgainstModel.TestCase


def test_a_gap_ends_the_match():
    index = PrefixIndex()
    index.add_replica("a", 10)
    index.insert("a", [b"1", b"2", b"3"])
    assert list(index.match([b"1", b"x", b"3"], ["a"])) == [1]


def test_the_tail_of_a_chain_is_forgotten_before_its_head():
    index = PrefixIndex()
    index.add_replica("a", 4)
    index.insert("a", [b"1", b"2", b"3"])
    index.insert("a", [b"x", b"y"])  # 5 blocks for 4 places: the oldest is the first chain's tail
    assert list(index.match([b"1", b"2", b"3"], ["a"])) == [2]
    assert list(index.match([b"x", b"y"], ["a"])) == [2]


@given(st.integers(0, 5), st.integers(0, 12))
def test_a_chain_longer_than_the_cache_keeps_its_head(capacity, length):
    index = PrefixIndex()
    index.add_replica("a", capacity)
    chain = [bytes([number]) for number in range(length)]
    index.insert("a", chain)
    assert list(index.match(chain, ["a"])) == [min(capacity, length)]


def test_a_replica_that_left_leaves_nothing_to_its_successor():
    index = PrefixIndex()
    index.add_replica("a", 10)
    index.insert("a", [b"1"])
    index.remove_replica("a")
    index.add_replica("b", 10)
    assert list(index.match([b"1"], ["a", "b"])) == [0, 0]
    assert len(index) == 0


CHAIN = [b"%d" % number for number in range(100)]


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=1, max_size=40), st.integers(0, 100))
def test_every_replica_of_many_gets_its_own_length(held, asked):
    index = PrefixIndex()
    for number, (depth, is_exact) in enumerate(held):
        name = f"r{number}"
        index.add_replica(name, len(CHAIN))
        if is_exact:
            index.begin(name, len(CHAIN))
            index.store(name, CHAIN[:depth])
            index.finish(name)
        else:
            index.insert(name, CHAIN[:depth])
    lengths = list(index.match(CHAIN[:asked], [f"r{number}" for number in range(len(held))]))
    assert lengths == [min(depth, asked) for depth, _ in held]


def test_an_expected_tail_whose_head_is_evicted_counts_no_more_until_the_head_is_back():
    index = PrefixIndex()
    index.begin("a", 100)
    index.store("a", CHAIN[:50])
    index.finish("a")
    expectation = index.expect("a", CHAIN)
    assert list(index.match(CHAIN, ["a"])) == [100]
    index.remove("a", CHAIN[20:50])
    assert list(index.match(CHAIN, ["a"])) == [20]
    index.store("a", CHAIN[20:30])
    assert list(index.match(CHAIN, ["a"])) == [30]
    index.store("a", CHAIN[30:50])
    assert list(index.match(CHAIN, ["a"])) == [100]
    index.settle(expectation)
    assert list(index.match(CHAIN, ["a"])) == [50]


def test_what_was_expected_of_a_cache_that_is_lost_takes_nothing_from_the_next():
    index = PrefixIndex()
    index.begin("a", 100)
    index.finish("a")
    before = index.expect("a", CHAIN[:10])
    index.clear_replica("a")
    index.begin("a", 100)
    index.finish("a")
    index.expect("a", CHAIN)
    index.settle(before)
    assert list(index.match(CHAIN, ["a"])) == [100]
