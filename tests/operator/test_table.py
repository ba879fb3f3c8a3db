"""What fits into the one Secret that gateways follow, and who waits where not everything does."""

import base64
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_api import wire
from quire_api.routing_secret import LIMIT, PACKED, PLAIN, pack, unpack
from quire_operator.table import Table, fitting, refusal_of
from quire_operator.world import Key


def entry(key: Key, keys: int = 0, seed: int = 0) -> wire.Deployment:
    noise = random.Random(f"{key} {seed}")
    found = [wire.ApiKey(name=f"k{n}", key=base64.b64encode(noise.randbytes(48)).decode()) for n in range(keys)]
    return wire.Deployment(name=key.name, namespace=key.namespace, served_names=[key.name], api_keys=found)


def entries(**sizes: int) -> dict[Key, wire.Deployment]:
    return {Key("models", name): entry(Key("models", name), keys) for name, keys in sizes.items()}


def test_a_table_is_plain_until_it_is_too_long_for_it():
    """Gateways older than the compressed form read whatever they could have read before."""
    few, many = Table.of(entries(a=3)), Table.of(entries(**{f"d{n}": 0 for n in range(6000)}))
    assert list(few.fields) == [PLAIN]
    assert list(many.fields) == [PACKED]
    assert many.size < 60 * 6000 < LIMIT


@pytest.mark.parametrize("damaged", [b"", b"x", pack(wire.RoutingTable())[PLAIN]])
def test_a_damaged_table_is_told_as_such(damaged):
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack({PACKED: damaged})


def test_at_the_limit_who_is_known_stays_and_the_new_one_waits():
    former = entries(a=6, b=6)
    limit = Table.of(former).size + 100
    table = fitting(former, {**former, **entries(c=6)}, limit)
    assert table.entries == former


def test_a_small_addition_finds_room_beside_a_large_one():
    former = entries(a=6)
    limit = Table.of(former).size + Table.of(entries(small=0)).size
    wished = {**former, **entries(large=9, small=0)}
    assert fitting(former, wished, limit).entries == {**former, **entries(small=0)}


def test_a_change_that_is_too_large_leaves_the_former_entry():
    former = entries(a=2, b=2)
    wished = {**former, **entries(a=50)}
    assert fitting(former, wished, Table.of(former).size).entries == former


def test_a_key_that_is_taken_away_is_gone_however_full_the_table_is():
    former = entries(a=5, b=5)
    wished = {**former, **entries(a=4, c=50)}
    table = fitting(former, wished, 10)
    assert table.entries == {**former, **entries(a=4)}


counts = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 12), max_size=8)


@settings(max_examples=200, deadline=None)
@given(before=counts, after=counts, limit=st.integers(0, 12_000), seed=st.integers(0, 1))
def test_the_table_holds_what_fits_and_refuses_no_reduction(before, after, limit, seed):
    former = fitting({}, entries(**before), limit).entries
    wished = {Key("models", n): entry(Key("models", n), count, seed) for n, count in after.items()}
    table = fitting(former, wished, limit)
    assert unpack(table.fields)
    assert table.entries.keys() <= wished.keys()
    assert table.entries.keys() >= former.keys() & wished.keys()
    for key, found in table.entries.items():
        assert found in (wished[key], former.get(key))
        if key in former and len(wished[key].api_keys) < len(former[key].api_keys):
            assert found == wished[key]
    if Table.of(wished).size <= limit:
        assert table.entries == wished
    elif not former:
        assert table.size <= limit or not table.entries


def test_the_owner_of_what_was_refused_is_told_what_gateways_do_and_what_to_do():
    new = refusal_of(entry(Key("models", "a"), 9), is_known=False)
    assert new.reason == "RoutingTableFull"
    assert "1,000,000 bytes" in new.message
    assert "do not know this deployment; most of this entry are its 9 API keys" in new.message
    assert "Use fewer API keys" in new.message
    assert "go on with its former names" in refusal_of(entry(Key("models", "a")), is_known=True).message
