"""A session's home: one replica for all gateways, kept where it costs little."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_gateway.cost import Candidate, Candidates, LoadBound, costs_of, pick_lowest_cost
from quire_gateway.sessions import MOST_EXTRA_COST, keep_session

SESSIONS = [b"session %d" % number for number in range(300)]
MESSAGES = [{"role": "user", "content": "w1 w2 w3"}]


def keep(session, *rows, prompt=100):
    candidates = Candidates.of(Candidate(*row) for row in rows)
    return keep_session(pick_lowest_cost(prompt, candidates, LoadBound()), session)


def idle(*names):
    return [(name, 0, 0, 0, 0) for name in names]


def home(session, *names):
    return keep(session, *idle(*names)).replica


def test_sessions_spread_and_each_has_one_home_in_any_order():
    spread = Counter(home(session, *"abcd") for session in SESSIONS)
    assert set(spread) == set("abcd")
    assert max(spread.values()) < 2 * len(SESSIONS) / 4
    assert all(home(session, *"abcd") == home(session, *"dcba") for session in SESSIONS)


def test_a_replica_that_goes_moves_only_its_own_sessions():
    for session in SESSIONS:
        before = home(session, *"abcd")
        if before != "c":
            assert home(session, *"abd") == before


@pytest.mark.parametrize(
    ("home_row", "is_kept"),
    [
        ((0, 0, 0), True),
        ((1, 0, 0), True),  # 8 x 100 + 125 x 1 = 925 beside 800
        ((0, 1024, 0), True),  # 8 x (1,024 + 100) = 8,992 <= 800 + 8 x 1,024
        ((0, 1025, 0), False),
        ((46, 0, 0), True),  # within the load bound: 8 + 1.25 x 23.5 + 2 x 4.85 = 47.1
        ((47, 0, 0), False),  # beyond it: 8 + 1.25 x 24 + 2 x 4.90 = 47.8 < 48
    ],
)
def test_it_is_kept_up_to_a_bounded_extra_cost(home_row, is_kept):
    session = next(each for each in SESSIONS if home(each, "a", "b") == "a")
    pick = keep(session, ("a", *home_row, 5), ("b", 0, 0, 0, 1))
    assert pick.replica == ("a" if is_kept else "b")
    assert (pick.reason == "session") is is_kept


def test_a_long_prompt_that_is_cached_elsewhere_goes_there():
    session = next(each for each in SESSIONS if home(each, "a", "b") == "a")
    assert keep(session, ("a", 0, 0, 0, 0), ("b", 0, 0, 7900, 0), prompt=8000).reason == "prefix-hit"
    assert keep(session, ("a", 0, 0, 7000, 0), ("b", 0, 0, 7900, 0), prompt=8000).reason == "session"


rows = st.lists(
    st.tuples(st.uuids().map(str), st.integers(0, 50), st.integers(0, 9999), st.integers(0, 5000), st.integers(0, 9)),
    min_size=1,
    max_size=8,
    unique_by=lambda row: row[0],
)


@given(rows, st.integers(1, 8000), st.binary(min_size=1, max_size=80))
def test_a_session_never_costs_more_than_its_bound(some, prompt, session):
    candidates = Candidates.of(Candidate(*row) for row in some)
    best = pick_lowest_cost(prompt, candidates, LoadBound())
    kept = keep_session(best, session)
    costs = dict(zip(candidates.replicas, costs_of(prompt, candidates), strict=True))
    assert costs[kept.replica] <= max(1.25 * costs[best.replica], costs[best.replica] + MOST_EXTRA_COST)


async def test_requests_of_one_session_meet_and_explain_says_so(make_world):
    world = await make_world(4)

    async def ask(session):
        answer = await world.client().chat.completions.with_raw_response.create(
            model="m", messages=MESSAGES, extra_headers={"x-quire-session": session}
        )
        return answer.headers["x-quire-replica"]

    homes = {session: await ask(session) for session in "abcdefgh"}
    assert len(set(homes.values())) > 1
    async with world.http() as http:
        for session, replica in homes.items():
            assert await ask(session) == replica
            body = {"model": "m", "messages": MESSAGES}
            told = (await http.post("/debug/route", json=body, headers={"x-quire-session": session})).json()
            assert told["chosen"] == replica
    seen = [request for engine in world.engines.values() for request in engine.seen]
    assert not [name for request in seen for name in request.headers if "session" in name]
