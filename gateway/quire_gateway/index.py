"""Which replica holds which blocks: what its engine tells, or else what was sent there; bounded by its real capacity.

    holders:  block key -> bit mask of replicas

Of each replica that is *exact* (`begin`, `store`..., `finish`):
    stored    what the engine can find, key for key            expected  what requests on their way will make it store
Of each other one:
    stored    what it last told, in doubt                      guessed   what was sent there, least recently used first

Invariant: bit r of holders[key] is set <=> key is in one of r's sets; no mask is zero; a replica that is not exact has
at most capacity[r] stored and guessed keys, an exact one as many stored and as many expected.

A replica is *closed* while it holds with each key all keys before it in that key's chain, as engines do that give a
chain's last block up first. How far such a one holds a chain is found by looks far apart. Gaps that events do not tell
of (docs/kv-events.md) are overlooked until `expect` fills them.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice

from quire_gateway.misses import Removed
from quire_gateway.prefix_match import Keys, Match

INDEX_KEY_BYTES = 15
"""The first ones of a block's 16 are kept: a bytes object of 15 takes 48 bytes of memory, one of 16 takes 64. That two
of ten million blocks begin alike has a chance of 4 in 10^23, and would only send a request where less of it is cached,
for engines compare whole keys."""
_MOST_MASKS = 4096
_AT_ONCE = 64
"""A full replica forgets this part of its capacity at once: to find the oldest key of a dict takes as long as to find
the oldest thousand, and an OrderedDict would be 70 bytes more for each block."""
_LEAST_CHURN = 1024


class OutOfStep(Exception):
    """What an engine tells cannot follow on what it told before; only a new snapshot helps."""


@dataclass(slots=True)
class _Holder:
    """Its keys are in dicts, not in sets: Python's collector looks at each element of a set, at none of a dict that
    holds bytes, numbers and None only. Ten million elements are a pause of a second.
    """

    bit: int
    capacity: int
    is_exact: bool = False
    stored: dict[bytes, None] = field(default_factory=dict)
    """Oldest first; in doubt, newest first."""
    arriving: dict[bytes, None] | None = None
    """The part of a snapshot that has come."""
    expected: dict[bytes, int] = field(default_factory=dict)
    """By how many requests."""
    guessed: dict[bytes, bytes] = field(default_factory=dict)
    """Each key once more as its value, so that one that is sent again stays one object."""
    churn: int = 0
    """Entries made in `guessed` since it was last as small as its keys allow."""
    anchors: dict[bytes, int] = field(default_factory=dict)
    """Stored keys that expected ones follow on, each with the number of requests that expect it to be there."""
    lost_anchors: set[bytes] = field(default_factory=set)
    """Those that are not stored any more, though they were."""
    has_settled: bool = False
    """Of what it is believed to hold since it ceased to be exact, a part is the tail of a chain."""

    @property
    def is_closed(self) -> bool:
        if self.arriving is not None:
            return False
        if self.is_exact:
            return not self.lost_anchors
        return not (self.stored or self.expected or self.has_settled)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Replicas whose match is asked for: their bits in one mask, and of each its bit and that one's length.

    Both are 0 of a replica that is not tracked.
    """

    replicas: tuple[str, ...]
    mask: int
    places: list[int]
    bits: list[int]


_NOBODY = _Asked((), 0, [], [])


@dataclass(frozen=True, slots=True)
class Expectation:
    """Blocks that one request on its way will make an exact replica store; give it back to `settle`."""

    replica: str
    keys: Sequence[bytes]
    anchor: bytes | None
    """The stored key that the first of `keys` follows on; None: that is a chain's first."""
    holder: object = field(repr=False, compare=False)
    """Of `replica` then: nothing is settled at a cache that has been lost since."""


class PrefixIndex:
    """Block keys of one deployment's replicas. Every operation but `match` is O(1) per block and touched replica.

    Whoever brings keys has cut them to their first `INDEX_KEY_BYTES`.
    """

    def __init__(self) -> None:
        self._holders: dict[bytes, int] = {}
        self._replicas: dict[str, _Holder] = {}
        self._names: dict[int, str] = {}
        self._masks: dict[int, int] = {}
        self._open = 0
        """Bits of the replicas that are not closed."""
        self._asked = _NOBODY
        self.removed = Removed()
        """What replicas have evicted lately."""

    def __len__(self) -> int:
        """Distinct blocks known."""
        return len(self._holders)

    def blocks_of(self, replica: str) -> int:
        """Blocks that `replica` holds, or is believed to hold; 0 for one that is not known."""
        holder = self._replicas.get(replica)
        return 0 if holder is None else len(holder.stored) + len(holder.guessed)

    def stored_at(self, replica: str) -> Set[bytes]:
        """What `replica` told that it holds; to be read only."""
        holder = self._replicas.get(replica)
        return frozenset() if holder is None else holder.stored.keys()

    def is_exact(self, replica: str) -> bool:
        """Whether `stored_at` is what the engine can find, but for events on their way."""
        holder = self._replicas.get(replica)
        return holder is not None and holder.is_exact

    def add_replica(self, replica: str, capacity: int) -> None:
        """Track `replica`, whose cache holds `capacity` blocks; guesses beyond a smaller new capacity are forgotten."""
        holder = self._replicas.get(replica)
        if holder is None:
            bit = 1
            while bit in self._names:
                bit <<= 1
            holder = self._replicas[replica] = _Holder(bit, capacity)
            self._names[bit] = replica
            self._asked = _NOBODY
        holder.capacity = max(0, capacity)
        self._shrink(holder)

    def remove_replica(self, replica: str) -> None:
        """Forget `replica` and all that it holds."""
        self.clear_replica(replica)
        holder = self._replicas.pop(replica, None)
        if holder is not None:
            del self._names[holder.bit]
            self._open &= ~holder.bit
            self._asked = _NOBODY

    def clear_replica(self, replica: str) -> None:
        """`replica` has lost its cache (its engine restarted) and has told nothing of the new one."""
        holder = self._replicas.get(replica)
        if holder is not None:
            known = (holder.stored, holder.arriving or (), holder.expected, holder.guessed)
            self._unset(set().union(*known), holder.bit)
            self._replicas[replica] = _Holder(holder.bit, holder.capacity)
            self._open &= ~holder.bit

    # What was sent there

    def insert(self, replica: str, keys: Sequence[bytes]) -> None:
        """`replica`, which is not exact, is about to compute the chain `keys`: now its most recently used, head last.

        Of a chain longer than its capacity only the head counts. A replica that is not tracked is ignored.
        """
        holder = self._replicas.get(replica)
        if holder is None:
            return
        guessed, stored = holder.guessed, holder.stored
        fresh: list[bytes] = []
        for key in reversed(keys[: holder.capacity]):
            stored.pop(key, None)
            known = guessed.pop(key, None)
            if known is None:
                fresh.append(key)
                known = key
            guessed[known] = known
        holder.churn += len(keys)
        self._set(fresh, holder.bit)
        self._shrink(holder)
        if holder.churn > max(_LEAST_CHURN, len(holder.guessed) // 2):
            # A dict keeps the places of what left it, and grows threefold when it has none left.
            holder.guessed, holder.churn = {**holder.guessed}, 0
        self._judge(holder)

    def expect(self, replica: str, keys: Sequence[bytes]) -> Expectation | None:
        """A request for the chain `keys` is on its way to `replica`: twins of a cold prefix meet there.

        None: there is nothing to settle.
        """
        holder = self._replicas.get(replica)
        if holder is None:
            return None
        if not holder.is_exact:
            self.insert(replica, keys)
            return None
        # Several quick passes over the chain: this runs between a choice and its request's departure.
        stored, expected = holder.stored, holder.expected
        fresh = [key for key in keys if key not in stored]
        unexpected = [key for key in fresh if key not in expected]
        room = holder.capacity - len(expected)
        if len(unexpected) > room:
            del fresh[fresh.index(unexpected[room]) :]
            del unexpected[room:]
        if not fresh:
            return None
        if len(unexpected) == len(fresh):
            expected.update(dict.fromkeys(fresh, 1))
        else:
            for key in fresh:
                expected[key] = expected.get(key, 0) + 1
        self._set(unexpected, holder.bit)
        first = keys.index(fresh[0])
        anchor = keys[first - 1] if first else None
        if anchor is not None:
            holder.anchors[anchor] = holder.anchors.get(anchor, 0) + 1
        return Expectation(replica, fresh, anchor, holder)

    def settle(self, expectation: Expectation) -> None:
        """The request has been computed, or never will be: from now on what the engine told counts, if it tells."""
        holder = self._replicas.get(expectation.replica)
        if holder is None or holder is not expectation.holder:
            return
        expected, anchor = holder.expected, expectation.anchor
        if anchor is not None:
            holder.anchors[anchor] -= 1
            if not holder.anchors[anchor]:
                del holder.anchors[anchor]
                holder.lost_anchors.discard(anchor)
        keys = expectation.keys
        left = {key: count - 1 for key in keys if (count := expected.pop(key)) > 1}
        expected.update(left)
        over = [key for key in keys if key not in left] if left else keys
        if holder.is_exact:
            self._release(holder, over)
        else:
            holder.has_settled = holder.has_settled or bool(over)
            self.insert(expectation.replica, over)
        self._judge(holder)

    # What the engine tells

    def begin(self, replica: str, capacity: int) -> None:
        """A snapshot of `replica`'s cache of `capacity` blocks follows, by `store`; what was known counts meanwhile."""
        self.lose(replica)
        self.add_replica(replica, capacity)
        holder = self._replicas[replica]
        holder.arriving = {}
        self._judge(holder)

    def finish(self, replica: str) -> None:
        """The snapshot is whole: from now on `replica` is exact."""
        holder = self._replicas[replica]
        if holder.arriving is None:
            raise OutOfStep("the end of a snapshot that never began")
        doubtful = (holder.stored.keys() | holder.guessed.keys()) - holder.arriving.keys()
        holder.stored, holder.arriving = holder.arriving, None
        holder.guessed.clear()
        holder.is_exact, holder.has_settled = True, False
        holder.lost_anchors = holder.anchors.keys() - holder.stored.keys()
        self._release(holder, doubtful)
        self._judge(holder)

    def store(self, replica: str, keys: Sequence[bytes]) -> None:
        """`replica` holds `keys`.

        Raises:
            OutOfStep: nobody asked, or it claims to hold more than it can.
        """
        holder = self._telling(replica)
        stored = holder.stored if holder.arriving is None else holder.arriving
        stored.update(dict.fromkeys(keys))
        self._set(keys, holder.bit)
        if holder.lost_anchors and holder.arriving is None:
            holder.lost_anchors.difference_update(keys)
            self._judge(holder)
        if len(stored) > holder.capacity:
            raise OutOfStep(f"more than its {holder.capacity} blocks are stored")

    def remove(self, replica: str, keys: Sequence[bytes]) -> None:
        """`replica` holds none of `keys` any more.

        Raises:
            OutOfStep: it did not tell that it held them.
        """
        holder = self._telling(replica)
        stored = holder.stored
        if not all(map(stored.__contains__, keys)):
            raise OutOfStep("blocks are removed that were never stored")
        for key in keys:
            stored.pop(key, None)
        self._release(holder, keys)
        if holder.anchors:
            holder.lost_anchors |= holder.anchors.keys() & keys
            self._judge(holder)
        self.removed.add(keys)

    def clear(self, replica: str) -> None:
        """`replica` holds nothing any more; what is on its way there will be stored all the same."""
        holder = self._telling(replica)
        gone, holder.stored = holder.stored, {}
        self._release(holder, gone)
        holder.lost_anchors = set(holder.anchors)
        self._judge(holder)

    def lose(self, replica: str) -> None:
        """Events of `replica` are missing: what it told is in doubt, and what is sent there is believed."""
        holder = self._replicas.get(replica)
        if holder is None:
            return
        if holder.is_exact:
            holder.is_exact = False
            holder.stored = dict.fromkeys(reversed(holder.stored))
        arrived, holder.arriving = holder.arriving, None
        self._release(holder, arrived or ())
        self._shrink(holder)
        self._judge(holder)

    def match(self, keys: Keys, replicas: Sequence[str]) -> Match:
        """How many blocks of the chain `keys`, counted from its head without a gap, each of `replicas` holds.

        One search for all of them. A tuple that was asked before need not be looked up again.
        """
        asked = self._asked_for(replicas)
        holders_of = self._holders.get
        holding = holders_of(keys[0], 0) & asked.mask if len(keys) else 0
        nested, others = holding & ~self._open, holding & self._open
        return Match(keys, holders_of, asked.places, asked.bits, nested, others)

    def _asked_for(self, replicas: Sequence[str]) -> _Asked:
        asked = replicas if isinstance(replicas, tuple) else tuple(replicas)
        if asked is not self._asked.replicas:
            self._asked = self._ask(asked)
        return self._asked

    def _ask(self, replicas: tuple[str, ...]) -> _Asked:
        bits = [0 if (holder := self._replicas.get(replica)) is None else holder.bit for replica in replicas]
        mask = 0
        for bit in bits:
            mask |= bit
        return _Asked(replicas, mask, [bit.bit_length() for bit in bits], bits)

    def _telling(self, replica: str) -> _Holder:
        holder = self._replicas.get(replica)
        if holder is None or (holder.arriving is None and not holder.is_exact):
            raise OutOfStep("events without a snapshot")
        return holder

    def _judge(self, holder: _Holder) -> None:
        if holder.is_closed:
            self._open &= ~holder.bit
        else:
            self._open |= holder.bit

    def _shrink(self, holder: _Holder) -> None:
        if holder.is_exact:
            return
        stored, guessed = holder.stored, holder.guessed
        while (over := len(stored) + len(guessed) - holder.capacity) > 0:
            if stored:
                keys = [stored.popitem()[0]]
            else:
                keys = list(islice(guessed, max(over, holder.capacity // _AT_ONCE)))
                for key in keys:
                    del guessed[key]
            self._release(holder, keys)
            self.removed.add(keys)

    def _set(self, keys: Sequence[bytes], bit: int) -> None:
        """Give the replica's bit to `keys`."""
        holders = self._holders
        known = [key for key in keys if key in holders]
        if len(known) < len(keys):
            fresh = keys if not known else [key for key in keys if key not in holders]
            holders.update(dict.fromkeys(fresh, bit))
        for key in known:
            mask = holders[key]
            if not mask & bit:
                holders[key] = self._shared(mask | bit)

    def _release(self, holder: _Holder, keys: Iterable[bytes]) -> None:
        """Take the replica's bit from those of `keys` that are in none of its sets."""
        for known in (holder.stored, holder.expected, holder.guessed, holder.arriving):
            if known:
                keys = [key for key in keys if key not in known]
        self._unset(keys, holder.bit)

    def _unset(self, keys: Iterable[bytes], bit: int) -> None:
        holders = self._holders
        for key in keys:
            mask = holders.get(key, 0)
            if mask == bit:
                del holders[key]
            elif mask & bit:
                holders[key] = self._shared(mask ^ bit)

    def _shared(self, mask: int) -> int:
        """One object for equal masks: of each key's own they would be a fifth of the index."""
        if len(self._masks) >= _MOST_MASKS:
            self._masks.clear()
        return self._masks.setdefault(mask, mask)
