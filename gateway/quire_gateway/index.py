"""Which replica holds which blocks: what its engine tells, or else what was sent there; bounded by its real capacity.

    holders:  block key -> bit mask of replicas

Of each replica that is *exact* (`begin`, `store`..., `finish`):
    stored    what the engine can find, key for key            expected  what requests on their way will make it store
Of each other one:
    stored    what it last told, in doubt                      guessed   what was sent there, least recently used first

Invariant: bit r of holders[key] is set <=> key is in one of r's sets; no mask is zero; a replica that is not exact has
at most capacity[r] stored and guessed keys, an exact one as many stored and as many expected.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

from quire_gateway.misses import Removed

_MOST_MASKS = 4096


class OutOfStep(Exception):
    """What an engine tells cannot follow on what it told before; only a new snapshot helps."""


@dataclass(slots=True)
class _Holder:
    bit: int
    capacity: int
    is_exact: bool = False
    stored: set[bytes] = field(default_factory=set)
    arriving: set[bytes] | None = None
    """The part of a snapshot that has come."""
    expected: dict[bytes, int] = field(default_factory=dict)
    """By how many requests."""
    guessed: OrderedDict[bytes, None] = field(default_factory=OrderedDict)


@dataclass(frozen=True, slots=True)
class _Asked:
    """Replicas whose match is asked for: their bits in one mask, and of each the length of its bit; 0: not tracked."""

    replicas: tuple[str, ...]
    mask: int
    places: list[int]


@dataclass(frozen=True, slots=True)
class Expectation:
    """Blocks that one request on its way will make an exact replica store; give it back to `settle`."""

    replica: str
    keys: Sequence[bytes]


class PrefixIndex:
    """Block keys of one deployment's replicas. Every operation is O(1) per block and touched replica."""

    def __init__(self) -> None:
        self._holders: dict[bytes, int] = {}
        self._replicas: dict[str, _Holder] = {}
        self._names: dict[int, str] = {}
        self._masks: dict[int, int] = {}
        self._asked = _Asked((), 0, [])
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
        return frozenset() if holder is None else holder.stored

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
            self._asked = _Asked((), 0, [])
        holder.capacity = max(0, capacity)
        self._shrink(holder)

    def remove_replica(self, replica: str) -> None:
        """Forget `replica` and all that it holds."""
        self.clear_replica(replica)
        holder = self._replicas.pop(replica, None)
        if holder is not None:
            del self._names[holder.bit]
            self._asked = _Asked((), 0, [])

    def clear_replica(self, replica: str) -> None:
        """`replica` has lost its cache (its engine restarted) and has told nothing of the new one."""
        holder = self._replicas.get(replica)
        if holder is not None:
            known = (holder.stored, holder.arriving or (), holder.expected, holder.guessed)
            for key in set().union(*known):
                self._unset(key, holder.bit)
            self._replicas[replica] = _Holder(holder.bit, holder.capacity)

    # What was sent there

    def insert(self, replica: str, keys: Sequence[bytes]) -> None:
        """`replica`, which is not exact, is about to compute the chain `keys`: now its most recently used, head last.

        Of a chain longer than its capacity only the head counts. A replica that is not tracked is ignored.
        """
        holder = self._replicas.get(replica)
        if holder is None:
            return
        guessed, stored = holder.guessed, holder.stored
        for key in reversed(keys[: holder.capacity]):
            stored.discard(key)
            if key in guessed:
                guessed.move_to_end(key)
            else:
                guessed[key] = None
                self._set(key, holder.bit)
        self._shrink(holder)

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
        stored, expected = holder.stored, holder.expected
        fresh = []
        for key in keys:
            if key in stored:
                continue
            count = expected.get(key, 0)
            if not count:
                if len(expected) >= holder.capacity:
                    break
                self._set(key, holder.bit)
            expected[key] = count + 1
            fresh.append(key)
        return Expectation(replica, fresh) if fresh else None

    def settle(self, expectation: Expectation) -> None:
        """The request has been computed, or never will be: from now on what the engine told counts, if it tells."""
        holder = self._replicas.get(expectation.replica)
        if holder is None:
            return
        expected = holder.expected
        over = []
        for key in expectation.keys:
            count = expected.get(key, 0)
            if count > 1:
                expected[key] = count - 1
            elif count:
                del expected[key]
                over.append(key)
        if holder.is_exact:
            self._release(holder, over)
        else:
            self.insert(expectation.replica, over)

    # What the engine tells

    def begin(self, replica: str, capacity: int) -> None:
        """A snapshot of `replica`'s cache of `capacity` blocks follows, by `store`; what was known counts meanwhile."""
        self.lose(replica)
        self.add_replica(replica, capacity)
        self._replicas[replica].arriving = set()

    def finish(self, replica: str) -> None:
        """The snapshot is whole: from now on `replica` is exact."""
        holder = self._replicas[replica]
        if holder.arriving is None:
            raise OutOfStep("the end of a snapshot that never began")
        doubtful = (holder.stored | holder.guessed.keys()) - holder.arriving
        holder.stored, holder.arriving = holder.arriving, None
        holder.guessed.clear()
        holder.is_exact = True
        self._release(holder, doubtful)

    def store(self, replica: str, keys: Sequence[bytes]) -> None:
        """`replica` holds `keys`.

        Raises:
            OutOfStep: nobody asked, or it claims to hold more than it can.
        """
        holder = self._telling(replica)
        stored = holder.stored if holder.arriving is None else holder.arriving
        stored.update(keys)
        for key in keys:
            self._set(key, holder.bit)
        if len(stored) > holder.capacity:
            raise OutOfStep(f"more than its {holder.capacity} blocks are stored")

    def remove(self, replica: str, keys: Sequence[bytes]) -> None:
        """`replica` holds none of `keys` any more.

        Raises:
            OutOfStep: it did not tell that it held them.
        """
        holder = self._telling(replica)
        if not holder.stored.issuperset(keys):
            raise OutOfStep("blocks are removed that were never stored")
        holder.stored.difference_update(keys)
        self._release(holder, keys)
        self.removed.add(keys)

    def clear(self, replica: str) -> None:
        """`replica` holds nothing any more; what is on its way there will be stored all the same."""
        holder = self._telling(replica)
        gone, holder.stored = holder.stored, set()
        self._release(holder, gone)

    def lose(self, replica: str) -> None:
        """Events of `replica` are missing: what it told is in doubt, and what is sent there is believed."""
        holder = self._replicas.get(replica)
        if holder is None:
            return
        holder.is_exact = False
        arrived, holder.arriving = holder.arriving, None
        self._release(holder, arrived or ())
        self._shrink(holder)

    def match(self, keys: Iterable[bytes], replicas: Sequence[str]) -> list[int]:
        """How many blocks of the chain, counted from its head without a gap, each of `replicas` holds.

        One walk for all of them. A tuple that was asked before need not be looked up again. Takes no more from
        `keys` than the first block that none of them holds.
        """
        asked = replicas if isinstance(replicas, tuple) else tuple(replicas)
        if asked is not self._asked.replicas:
            self._asked = self._ask(asked)
        places, alive = self._asked.places, self._asked.mask
        lengths = [0] * (alive.bit_length() + 1)
        depth = 0
        if alive:
            same: int | None = -1
            for depth, mask in enumerate(map(self._holders.get, keys), 1):
                # Neighbours in a chain are mostly held by the same replicas; equal masks are mostly one object.
                if mask is same:
                    continue
                same = mask
                if mask is None:
                    break
                gone = alive & ~mask
                if not gone:
                    continue
                alive ^= gone
                if depth > 1:
                    while gone:
                        place = gone.bit_length()
                        lengths[place] = depth - 1
                        gone ^= 1 << (place - 1)
                if not alive:
                    break
            else:
                depth += 1
        while alive and depth > 1:
            place = alive.bit_length()
            lengths[place] = depth - 1
            alive ^= 1 << (place - 1)
        return [lengths[place] for place in places]

    def _ask(self, replicas: tuple[str, ...]) -> _Asked:
        bits = [0 if (holder := self._replicas.get(replica)) is None else holder.bit for replica in replicas]
        mask = 0
        for bit in bits:
            mask |= bit
        return _Asked(replicas, mask, [bit.bit_length() for bit in bits])

    def _telling(self, replica: str) -> _Holder:
        holder = self._replicas.get(replica)
        if holder is None or (holder.arriving is None and not holder.is_exact):
            raise OutOfStep("events without a snapshot")
        return holder

    def _shrink(self, holder: _Holder) -> None:
        if holder.is_exact:
            return
        stored, guessed = holder.stored, holder.guessed
        while len(stored) + len(guessed) > holder.capacity:
            keys = (stored.pop() if stored else guessed.popitem(last=False)[0],)
            self._release(holder, keys)
            self.removed.add(keys)

    def _set(self, key: bytes, bit: int) -> None:
        mask = self._holders.get(key)
        if mask is None:
            self._holders[key] = bit
        elif not mask & bit:
            self._holders[key] = self._shared(mask | bit)

    def _release(self, holder: _Holder, keys: Iterable[bytes]) -> None:
        """Take the replica's bit from those of `keys` that are in none of its sets."""
        stored, expected, guessed, arriving = holder.stored, holder.expected, holder.guessed, holder.arriving or ()
        for key in keys:
            if not (key in stored or key in expected or key in guessed or key in arriving):
                self._unset(key, holder.bit)

    def _unset(self, key: bytes, bit: int) -> None:
        mask = self._holders.get(key, 0) & ~bit
        if mask:
            self._holders[key] = self._shared(mask)
        else:
            self._holders.pop(key, None)

    def _shared(self, mask: int) -> int:
        """One object for equal masks: of each key's own they would be a fifth of the index."""
        if len(self._masks) >= _MOST_MASKS:
            self._masks.clear()
        return self._masks.setdefault(mask, mask)
