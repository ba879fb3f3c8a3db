"""The prefixes given are cached, maximal, ordered by their hits, and within the bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_runtime.kv import prefix as prefix_module
from quire_runtime.kv.hot import Prefix, hottest
from quire_runtime.kv.tables import BlockTables

SIZE = 2
EVERYTHING = 1 << 20


class Cache:
    """Block tables, used as the scheduler uses them: one prompt at a time in row 0."""

    def __init__(self, num_blocks: int = 200) -> None:
        self.tables = BlockTables(1, 64, SIZE, num_blocks)
        assert self.tables.index is not None
        self.index = self.tables.index

    def ask(self, tokens: list[int], salt: str = "") -> int:
        """Tokens of the prompt that were found."""
        chain, prompt, row = self.tables.chain(salt), np.array(tokens, np.int32), np.zeros(1, np.int32)
        hits = self.tables.lookup(chain, prompt)
        self.tables.adopt(0, hits)
        self.index.count_hit(hits)
        self.tables.extend(row, self.tables.missing(row, np.array([len(tokens)], np.int32)))
        self.tables.register(0, chain, prompt)
        self.tables.release(0)
        return len(hits) * SIZE

    def is_cached(self, prefix: Prefix) -> bool:
        ids = np.append(prefix.token_ids, 0).astype(np.int32)
        return len(self.tables.lookup(self.tables.chain(prefix.salt), ids)) * SIZE == len(prefix.token_ids)

    def hottest(self, max_prefixes: int = EVERYTHING, max_tokens: int = EVERYTHING) -> list[Prefix]:
        return hottest(self.index.hit_blocks(), max_prefixes, max_tokens)


def told(prefixes: list[Prefix]) -> list[tuple[int, list[int], str]]:
    return [(each.hits, each.token_ids.tolist(), each.salt) for each in prefixes]


def test_what_was_asked_for_once_is_not_hot() -> None:
    cache = Cache()
    cache.ask([1, 2, 3, 4, 5])
    assert cache.hottest() == []


def test_prefixes_are_as_long_as_they_were_found_and_the_hottest_comes_first() -> None:
    cache = Cache()
    for last in range(3):
        cache.ask([1, 2, 3, 4, 10 + last])
    cache.ask([7, 8, 9])
    cache.ask([7, 8, 9])
    assert told(cache.hottest()) == [(2, [1, 2, 3, 4], ""), (1, [7, 8], "")]


def test_a_branch_counts_what_it_has_for_itself() -> None:
    cache = Cache()
    for _ in range(2):
        cache.ask([1, 2, 3, 4, 0])  # found once: [1, 2], [3, 4]
        cache.ask([1, 2, 5, 6, 0])  # found once: [5, 6]; [1, 2] three times in all
    assert told(cache.hottest()) == [(3, [1, 2, 3, 4], ""), (1, [1, 2, 5, 6], "")]
    # Their two tokens in common are computed once: six in all.
    assert told(cache.hottest(max_tokens=6)) == told(cache.hottest())
    assert told(cache.hottest(max_tokens=5)) == [(3, [1, 2, 3, 4], "")]


def test_a_prefix_comes_with_the_salt_that_finds_it() -> None:
    cache = Cache()
    for _ in range(2):
        cache.ask([1, 2, 3], salt="alice")
        cache.ask([1, 2, 3], salt="bob")
    assert sorted(told(cache.hottest())) == [(1, [1, 2], "alice"), (1, [1, 2], "bob")]


def test_a_block_in_new_hands_is_cold() -> None:
    cache = Cache(num_blocks=3)
    cache.ask([1, 2, 3])
    cache.ask([1, 2, 3])
    cache.ask([5, 6, 7, 8])
    assert cache.hottest() == []
    assert not cache.index._salts


def test_what_was_hot_once_cools_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_module, "HITS_HALVED_EVERY", 4)
    cache = Cache()
    for _ in range(5):
        cache.ask([1, 2, 3])
    assert told(cache.hottest()) == [(2, [1, 2], "")]


def test_nothing_is_told_after_the_cache_was_cleared() -> None:
    cache = Cache()
    cache.ask([1, 2, 3], salt="alice")
    cache.ask([1, 2, 3], salt="alice")
    cache.index.clear()
    assert cache.hottest() == []
    assert not cache.index._salts


prompts = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.sampled_from(["", "a"])), max_size=60
)


@given(prompts=prompts, num_blocks=st.integers(8, 60), most=st.integers(0, 6), room=st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_prefixes_are_cached_maximal_ordered_and_within_the_bounds(
    prompts: list[tuple[list[int], str]], num_blocks: int, most: int, room: int
) -> None:
    cache = Cache(num_blocks)
    for tokens, salt in prompts:
        cache.ask(tokens, salt)
    found = cache.hottest(most, room)
    assert all(cache.is_cached(each) for each in found)
    assert len(found) <= most
    assert [each.hits for each in found] == sorted((each.hits for each in found), reverse=True)
    texts = [(each.salt, each.token_ids.tolist()) for each in found]
    for salt, ids in texts:
        assert len(ids) % SIZE == 0
        assert not any(other != ids and other[: len(ids)] == ids and salt == theirs for theirs, other in texts)
    blocks = {(salt, tuple(ids[:end])) for salt, ids in texts for end in range(SIZE, len(ids) + 1, SIZE)}
    assert len(blocks) * SIZE <= room
    assert len(texts) == len({(salt, tuple(ids)) for salt, ids in texts})
    if most > len(found) and len(blocks) * SIZE + SIZE <= room:
        # There was room for more: all that was ever found and is findable is there.
        seen = cache.index.hit_blocks()
        reachable = {identity for identity, parent in zip(seen.identities, seen.parents, strict=True) if parent < 0}
        for identity, parent in sorted(zip(seen.identities.tolist(), seen.parents.tolist(), strict=True)):
            if parent in reachable:
                reachable.add(identity)
        assert len(blocks) == len(reachable)
