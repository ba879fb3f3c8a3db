"""Which replica is believed to hold which blocks: bounded by what the replicas can really hold.

    holders:  block key -> bit mask of replicas          lru[replica]:  block keys, least recently used first

Invariant: bit r of holders[key] is set <=> key is in lru[r]; no mask is zero; len(lru[r]) <= capacity[r].
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Holder:
    bit: int
    capacity: int
    blocks: OrderedDict[bytes, None] = field(default_factory=OrderedDict)


class PrefixIndex:
    """Block keys of one deployment's replicas. Every operation is O(1) per block and touched replica."""

    def __init__(self) -> None:
        self._holders: dict[bytes, int] = {}
        self._replicas: dict[str, _Holder] = {}
        self._names: dict[int, str] = {}

    def __len__(self) -> int:
        """Distinct blocks known."""
        return len(self._holders)

    def blocks_of(self, replica: str) -> int:
        """Blocks believed to be at `replica`; 0 for one that is not known."""
        holder = self._replicas.get(replica)
        return 0 if holder is None else len(holder.blocks)

    def add_replica(self, replica: str, capacity: int) -> None:
        """Track `replica`, whose cache holds `capacity` blocks; blocks beyond a smaller new capacity are forgotten."""
        holder = self._replicas.get(replica)
        if holder is None:
            bit = 1
            while bit in self._names:
                bit <<= 1
            holder = self._replicas[replica] = _Holder(bit, capacity)
            self._names[bit] = replica
        holder.capacity = max(0, capacity)
        self._shrink(holder)

    def remove_replica(self, replica: str) -> None:
        """Forget `replica` and all that it holds."""
        holder = self._replicas.pop(replica, None)
        if holder is not None:
            self._forget_blocks(holder)
            del self._names[holder.bit]

    def clear_replica(self, replica: str) -> None:
        """`replica` has lost its cache (its engine restarted)."""
        holder = self._replicas.get(replica)
        if holder is not None:
            self._forget_blocks(holder)

    def insert(self, replica: str, keys: Sequence[bytes]) -> None:
        """`replica` holds, or is about to compute, the chain `keys`: now its most recently used, head last.

        Of a chain longer than its capacity only the head counts. A replica that is not tracked is ignored.
        """
        holder = self._replicas.get(replica)
        if holder is None:
            return
        blocks, bit, holders = holder.blocks, holder.bit, self._holders
        for key in reversed(keys[: holder.capacity]):
            if key in blocks:
                blocks.move_to_end(key)
            else:
                blocks[key] = None
                holders[key] = holders.get(key, 0) | bit
        self._shrink(holder)

    def match(self, keys: Iterable[bytes], replicas: Iterable[str]) -> dict[str, int]:
        """How many blocks of the chain, counted from its head without a gap, each of `replicas` holds.

        Takes no more from `keys` than the first block that none of them holds.
        """
        lengths = dict.fromkeys(replicas, 0)
        names, holders = self._names, self._holders
        alive = 0
        for replica in lengths:
            holder = self._replicas.get(replica)
            if holder is not None:
                alive |= holder.bit
        depth = 0
        if alive:
            for key in keys:
                still = holders.get(key, 0) & alive
                gone = alive & ~still
                while gone:
                    bit = gone & -gone
                    lengths[names[bit]] = depth
                    gone ^= bit
                alive = still
                if not alive:
                    return lengths
                depth += 1
        while alive:
            bit = alive & -alive
            lengths[names[bit]] = depth
            alive ^= bit
        return lengths

    def _shrink(self, holder: _Holder) -> None:
        while len(holder.blocks) > holder.capacity:
            key, _ = holder.blocks.popitem(last=False)
            self._clear_bit(key, holder.bit)

    def _forget_blocks(self, holder: _Holder) -> None:
        for key in holder.blocks:
            self._clear_bit(key, holder.bit)
        holder.blocks.clear()

    def _clear_bit(self, key: bytes, bit: int) -> None:
        mask = self._holders[key] & ~bit
        if mask:
            self._holders[key] = mask
        else:
            del self._holders[key]
