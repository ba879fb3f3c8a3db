"""Which block holds which prefix: keys from `quire_api.blocks`, verified against the tokens."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quire_api.blocks import packed_block_key
from quire_runtime.kv.hot import HitBlocks
from quire_runtime.kv.pool import BlockPool, Ints

HITS_HALVED_EVERY = 4096
"""Prompts that found something, after which all counts are halved: what was hot once does not stay so. TinyLFU's aging
(https://arxiv.org/abs/1512.00727)."""


class PrefixListener(Protocol):
    """Hears what the index holds, for those who route by it."""

    def stored(self, key: bytes, parent: bytes, tokens: Ints) -> None: ...

    def removed(self, key: bytes) -> None: ...

    def cleared(self) -> None: ...


class PrefixChain:
    """The keys of one sequence's full blocks, each computed once, and how far they stand in the index.

    identities[i] names the very prefix (not merely its key) under which block i is known; `len(identities)` blocks
    are registered.
    """

    __slots__ = ("identities", "keys", "root", "salt")

    def __init__(self, root: bytes, salt: str = "") -> None:
        self.root = root
        self.salt = salt
        self.keys: list[bytes] = []
        self.identities: list[int] = []

    def fork(self, num_blocks: int) -> "PrefixChain":
        """A chain that has the first `num_blocks` blocks in common with this one, or as many as are registered."""
        twin = PrefixChain(self.root, self.salt)
        twin.identities = self.identities[:num_blocks]
        twin.keys = self.keys[: len(twin.identities)]
        return twin

    def key(self, i: int, packed: bytes) -> bytes:
        """Key of block `i`, at most one beyond those known, which holds the tokens `packed`."""
        keys = self.keys
        if i == len(keys):
            keys.append(packed_block_key(keys[-1] if keys else self.root, packed))
        return keys[i]

    def parent_key(self, i: int) -> bytes:
        return self.keys[i - 1] if i else self.root

    def parent_identity(self, i: int) -> int:
        return self.identities[i - 1] if i else _root_identity(self.root)


class PrefixIndex:
    """Key -> block, for blocks whose contents are valid or will be before anyone can read them.

    A key only says where to look: a hit counts if the block's own tokens are equal and its parent is the very prefix
    matched before, so that colliding keys never return foreign contents. Two sequences that compute the same block
    keep one copy each (block tables stay append-only); the first one is the copy the index knows.

    Invariant: a block has at most one entry; eviction by the pool removes it.
    """

    def __init__(self, pool: BlockPool, block_size: int, listener: PrefixListener | None = None) -> None:
        self._pool = pool
        self._listener = listener
        self._blocks: dict[bytes, int] = {}
        self._keys: list[bytes | None] = [None] * pool.num_blocks
        self._tokens = np.zeros((pool.num_blocks, block_size), np.int32)
        self._identity: NDArray[np.int64] = np.zeros(pool.num_blocks, np.int64)
        self._parent: NDArray[np.int64] = np.zeros(pool.num_blocks, np.int64)
        self._identity_of, self._parent_of = self._identity.data, self._parent.data
        self._last_identity = 0
        self._hits = np.zeros(pool.num_blocks, np.int32)
        self._hits_of = self._hits.data
        self._num_hits = 0
        self._salts: dict[int, str] = {}
        """By block: the salt of first blocks that have one."""
        pool.on_evict = self._evicted

    def __len__(self) -> int:
        return len(self._blocks)

    def keys(self) -> list[bytes]:
        """Every key that is findable now."""
        return list(self._blocks)

    def lookup(self, chain: PrefixChain, contents: Ints) -> Ints:
        """Blocks that hold the longest known prefix of `contents` (int32 [full blocks, block_size]).

        The chain's identities become those of the prefix found. Nothing is held: share the blocks before taking any.
        """
        found: list[int] = []
        keys, get = chain.keys, self._blocks.get
        for i, packed in enumerate(_packed(contents)):
            if i == len(keys):
                keys.append(packed_block_key(keys[-1] if keys else chain.root, packed))
            block = get(keys[i])
            if block is None:
                break
            found.append(block)
        blocks = np.array(found, np.int32)
        identities = self._identity[blocks]
        parents = np.concatenate(([_root_identity(chain.root)], identities[:-1]))
        is_same = (self._tokens[blocks] == contents[: len(blocks)]).all(axis=1)
        is_same &= self._parent[blocks] == parents[: len(blocks)]
        length = len(blocks) if is_same.all() else int(is_same.argmin())
        chain.identities = identities[:length].tolist()
        return blocks[:length]

    def count_hit(self, blocks: Ints) -> None:
        """A prompt was found to begin with these blocks, as `lookup` gave them, and uses them."""
        if len(blocks) == 0:
            return
        self._hits[blocks] += 1
        self._num_hits += 1
        if self._num_hits % HITS_HALVED_EVERY == 0:
            self._hits >>= 1

    def hit_blocks(self) -> HitBlocks:
        """A copy of what is known of the findable blocks that prompts have found."""
        known = np.fromiter(self._blocks.values(), np.int32, len(self._blocks))
        blocks = known[self._hits[known] > 0]
        salts = {int(self._identity_of[block]): salt for block, salt in self._salts.items()}
        return HitBlocks(self._hits[blocks], self._identity[blocks], self._parent[blocks], self._tokens[blocks], salts)

    def register(self, chain: PrefixChain, blocks: Ints, contents: Ints) -> None:
        """Make the sequence's next full blocks findable: those behind the ones registered before.

        blocks int32 [n], held; contents int32 [n, block_size].
        """
        self._tokens[blocks] = contents
        for block, packed in zip(blocks.tolist(), _packed(contents), strict=True):
            self._add(chain, block, packed)

    def register_next(self, chains: list[PrefixChain], blocks: Ints, contents: Ints) -> None:
        """The same for one block of each of n sequences: the i-th chain's next one."""
        self._tokens[blocks] = contents
        for chain, block, packed in zip(chains, blocks.tolist(), _packed(contents), strict=True):
            self._add(chain, block, packed)

    def _add(self, chain: PrefixChain, block: int, packed: bytes) -> None:
        """Register the chain's next block, whose tokens have been noted."""
        number = len(chain.identities)
        parent = chain.parent_identity(number)
        key = chain.key(number, packed)
        known = self._blocks.get(key)
        if known is not None:
            if self._parent_of[known] == parent and (self._tokens[known] == self._tokens[block]).all():
                chain.identities.append(self._identity_of[known])
                return
            self._remove(known)
            self._pool.drop(known)
        self._last_identity += 1
        self._parent_of[block] = parent
        self._identity_of[block] = self._last_identity
        self._hits_of[block] = 0
        if chain.salt and not number:
            self._salts[block] = chain.salt
        self._blocks[key] = block
        self._keys[block] = key
        self._pool.keep(block)
        chain.identities.append(self._last_identity)
        if self._listener is not None:
            self._listener.stored(key, chain.parent_key(number), self._tokens[block])

    def clear(self) -> None:
        """Forget every prefix; cached blocks become free. Held blocks stay with their sequences."""
        for block in self._blocks.values():
            self._keys[block] = None
            self._pool.drop(block)
        self._blocks.clear()
        self._salts.clear()
        if self._listener is not None:
            self._listener.cleared()

    def _evicted(self, blocks: Ints) -> None:
        for block in blocks.tolist():
            self._remove(block)

    def _remove(self, block: int) -> None:
        key = self._keys[block]
        assert key is not None
        self._keys[block] = None
        del self._blocks[key]
        self._salts.pop(block, None)
        if self._listener is not None:
            self._listener.removed(key)


def _packed(contents: Ints) -> list[bytes]:
    """Of each row of int32 [n, block_size], its tokens as block keys have them."""
    whole, step = contents.astype("<u4").tobytes(), 4 * contents.shape[1]
    return [whole[start : start + step] for start in range(0, len(whole), step)]


def _root_identity(root: bytes) -> int:
    """Negative, so that it never meets the identity of a block."""
    return -1 - (int.from_bytes(root[:8], "little") >> 1)
