"""Hits are verified, salted and forgotten with their blocks."""

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_api.blocks import chain, packed_block_key, root_key
from quire_runtime.kv.pool import BlockPool
from quire_runtime.kv.prefix import PrefixChain, PrefixIndex

SIZE = 2


class Listener:
    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def stored(self, key: bytes, parent: bytes, tokens: np.ndarray) -> None:
        self.events.append(("stored", key, parent, tokens.tolist()))

    def removed(self, key: bytes) -> None:
        self.events.append(("removed", key))

    def cleared(self) -> None:
        self.events.append(("cleared",))


class Cache:
    """A pool and its index, used as a sequence uses them."""

    def __init__(self, num_blocks: int = 20, listener: Listener | None = None) -> None:
        self.pool = BlockPool(num_blocks)
        self.index = PrefixIndex(self.pool, SIZE, listener)

    def find(self, tokens: list[int], salt: str = "") -> list[int]:
        return self.index.lookup(PrefixChain(root(salt)), contents(tokens)).tolist()

    def store(self, tokens: list[int], salt: str = "") -> np.ndarray:
        """Compute `tokens` with what is known already; returns the held blocks."""
        links = PrefixChain(root(salt))
        hits = self.index.lookup(links, contents(tokens))
        self.pool.share(hits)
        blocks = np.concatenate((hits, self.pool.take(len(tokens) // SIZE - len(hits))))
        self.index.register(links, blocks[len(hits) :], contents(tokens)[len(hits) :])
        return blocks


def root(salt: str = "") -> bytes:
    return root_key("revision", SIZE, salt=salt)


def contents(tokens: list[int]) -> np.ndarray:
    count = len(tokens) // SIZE
    return np.array(tokens[: count * SIZE], np.int32).reshape(count, SIZE)


@pytest.fixture
def colliding() -> Iterator[None]:
    with mock.patch("quire_runtime.kv.prefix.packed_block_key", return_value=b"always the same"):
        yield


def test_the_longest_known_prefix_is_found() -> None:
    cache = Cache()
    blocks = cache.store([1, 2, 3, 4, 5, 6]).tolist()
    assert cache.find([1, 2, 3, 4, 5, 6]) == blocks
    assert cache.find([1, 2, 3, 4, 9, 9]) == blocks[:2]
    assert cache.find([1, 2, 3]) == blocks[:1]
    assert cache.find([3, 4]) == []


def test_other_salts_share_nothing() -> None:
    cache = Cache()
    cache.store([1, 2, 3, 4], salt="key of a tenant")
    assert cache.find([1, 2, 3, 4]) == []
    assert cache.find([1, 2, 3, 4], salt="key of another") == []
    assert len(cache.find([1, 2, 3, 4], salt="key of a tenant")) == 2


def test_a_block_handed_out_again_is_no_longer_found() -> None:
    cache = Cache(num_blocks=4)
    blocks = cache.store([1, 2, 3, 4, 5, 6])
    cache.pool.release(blocks[::-1])
    cache.pool.take(1)
    assert cache.find([1, 2, 3, 4, 5, 6]) == blocks[:2].tolist()
    cache.pool.take(2)
    assert cache.find([1, 2, 3, 4, 5, 6]) == []
    assert len(cache.index) == 0


def test_twins_keep_their_own_blocks_and_the_first_is_found() -> None:
    cache = Cache()
    first, second = PrefixChain(root()), PrefixChain(root())
    mine, theirs = cache.pool.take(2), cache.pool.take(2)
    cache.index.register(first, mine, contents([1, 2, 3, 4]))
    cache.index.register(second, theirs, contents([1, 2, 3, 4]))
    assert cache.find([1, 2, 3, 4]) == mine.tolist()
    cache.pool.release(theirs)
    assert cache.pool.num_cached == 0
    cache.pool.release(mine)
    assert cache.pool.num_cached == 2


def test_what_a_twin_computes_behind_the_shared_prefix_is_found_too() -> None:
    cache = Cache()
    first, second = PrefixChain(root()), PrefixChain(root())
    mine, theirs = cache.pool.take(1), cache.pool.take(2)
    cache.index.register(first, mine, contents([1, 2]))
    cache.index.register(second, theirs, contents([1, 2, 3, 4]))
    assert cache.find([1, 2, 3, 4]) == [mine[0], theirs[1]]


@pytest.mark.usefixtures("colliding")
def test_colliding_keys_return_nothing_foreign() -> None:
    cache = Cache()
    cache.store([1, 2])
    assert cache.find([3, 4]) == []
    blocks = cache.store([3, 4])
    assert cache.find([3, 4]) == blocks.tolist()
    assert cache.find([1, 2]) == []


def test_equal_blocks_behind_different_prefixes_do_not_mix_when_their_keys_collide() -> None:
    with mock.patch("quire_runtime.kv.prefix.packed_block_key", lambda parent, packed: packed):
        cache = Cache()
        blocks = cache.store([1, 1, 5, 5])
        cache.store([2, 2])
        assert cache.find([1, 1, 5, 5]) == blocks.tolist()
        assert len(cache.find([2, 2, 5, 5])) == 1


def test_keys_are_those_of_the_contract() -> None:
    listener = Listener()
    cache = Cache(4, listener)
    blocks = cache.store([1, 2, 3, 4])
    first, second = chain(root(), [1, 2, 3, 4], SIZE)
    assert listener.events == [("stored", first, root(), [1, 2]), ("stored", second, first, [3, 4])]
    listener.events.clear()
    cache.pool.release(blocks[::-1])
    cache.pool.take(2)
    cache.index.clear()
    assert listener.events == [("removed", second), ("cleared",)]
    assert cache.pool.num_cached == 0
    assert cache.find([1, 2]) == []


def test_clearing_leaves_held_blocks_to_their_sequences() -> None:
    cache = Cache()
    blocks = cache.store([1, 2, 3, 4])
    cache.index.clear()
    assert cache.pool.num_held == 2
    cache.pool.release(blocks)
    assert (cache.pool.num_held, cache.pool.num_cached) == (0, 0)


@settings(max_examples=150, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=25),
    key_bits=st.sampled_from([0, 1, 3, 128]),
    num_blocks=st.integers(8, 20),
)
def test_a_hit_always_holds_the_prefix_asked_for(prompts: list[list[int]], key_bits: int, num_blocks: int) -> None:
    """Whatever collides and whatever is evicted, a block found holds exactly the tokens up to its end."""

    def weak(parent: bytes, packed: bytes) -> bytes:
        key = packed_block_key(parent, packed)
        return key if key_bits == 128 else bytes([key[0] & ((1 << key_bits) - 1)])

    truth: dict[int, list[int]] = {}
    with mock.patch("quire_runtime.kv.prefix.packed_block_key", weak):
        cache = Cache(num_blocks)
        held: list[np.ndarray] = []
        for tokens in prompts:
            for i, block in enumerate(cache.find(tokens)):
                assert truth[block] == tokens[: (i + 1) * SIZE]
            if cache.pool.num_available < len(tokens) // SIZE:
                for blocks in held:
                    cache.pool.release(blocks[::-1])
                held.clear()
            blocks = cache.store(tokens)
            truth.update({int(block): tokens[: (i + 1) * SIZE] for i, block in enumerate(blocks)})
            held.append(blocks)
            assert len(cache.index) <= cache.pool.num_held + cache.pool.num_cached
        for blocks in held:
            cache.pool.release(blocks[::-1])
        assert cache.pool.num_held == 0
        assert len(cache.index) == cache.pool.num_cached
