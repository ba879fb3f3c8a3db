"""Outlier ejection: who goes, why, for how long, and that an outage of all ejects nobody."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_gateway import follow
from quire_gateway.outliers import WINDOW_S, Observed, OutlierRules, Seen, ejection_time_s, find_outliers

RULES = OutlierRules()
ASK = {"model": "m", "messages": [{"role": "user", "content": "w1"}]}


def fine(name, **more):
    return Seen(name, **{"requests": 50, "ttft_s": 0.2, "ttft_s_per_token": 0.001, "itl_s": 0.02, **more})


def bad(name, **more):
    return fine(name, **more)


def out(*seen, ejected=0, rules=RULES):
    return [(each.replica, each.cause) for each in find_outliers(seen, ejected, rules)]


# What one replica did beside two or three that are fine -> the cause, or none.
CASES = [
    # errors
    ({"failures": 5, "consecutive_5xx": 5}, "consecutive_5xx"),
    ({"failures": 9, "consecutive_5xx": 9}, "consecutive_5xx"),
    ({"failures": 4, "consecutive_5xx": 4}, None),
    ({"failures": 49, "consecutive_5xx": 1}, "failure_percentage"),
    ({"failures": 25}, "failure_percentage"),
    ({"failures": 24}, None),
    ({"requests": 20, "failures": 10}, "failure_percentage"),
    ({"requests": 19, "failures": 18}, None),
    ({"requests": 5, "failures": 5, "consecutive_5xx": 5}, "consecutive_5xx"),
    ({"requests": 0}, None),
    # first tokens: 4 times the others, and beyond half a second
    ({"ttft_s": 1.0, "ttft_s_per_token": 0.0041}, "ttft"),
    ({"ttft_s": 1.0, "ttft_s_per_token": 0.0039}, None),
    ({"ttft_s": 0.5, "ttft_s_per_token": 0.01}, None),
    ({"ttft_s": 0.51, "ttft_s_per_token": 0.01}, "ttft"),
    ({"ttft_s": 30.0, "ttft_s_per_token": 0.001}, None),  # a long queue is no fault of the replica's
    ({"ttft_s": None, "ttft_s_per_token": None}, None),
    # tokens: 4 times the others, and beyond 50 ms
    ({"itl_s": 0.081}, "itl"),
    ({"itl_s": 0.079}, None),
    ({"itl_s": None}, None),
    # of several faults the errors count first
    ({"failures": 30, "itl_s": 1.0}, "failure_percentage"),
    ({"ttft_s": 9.0, "ttft_s_per_token": 0.1, "itl_s": 1.0}, "ttft"),
    ({}, None),
]


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize(("what", "cause"), CASES)
def test_one_beside_others_that_are_fine(what, cause, count):
    others = [fine(f"o{number}") for number in range(count)]
    for place in (0, count):
        seen = [*others[:place], bad("x", **what), *others[place:]]
        assert out(*seen) == ([("x", cause)] if cause else [])


@pytest.mark.parametrize("cause_and_what", [case for case in CASES if case[1]])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_all_do_is_nobodys_fault(cause_and_what, count):
    what, _ = cause_and_what
    assert out(*(bad(f"r{number}", **what) for number in range(count))) == []


@pytest.mark.parametrize(
    ("total", "percent", "ejected", "most"),
    [
        (2, 34, 0, 1),
        (2, 0, 0, 0),
        (3, 34, 1, 0),
        (4, 34, 0, 1),
        (6, 34, 0, 2),
        (6, 34, 1, 1),
        (6, 34, 2, 0),
        (6, 34, 5, 0),
        (10, 34, 0, 3),
        (10, 100, 0, 4),
        (1, 100, 0, 0),
    ],
)
def test_no_more_are_out_than_may_be_and_one_stays(total, percent, ejected, most):
    # Two in five fail.
    seen = [
        bad(f"r{number}", failures=40, consecutive_5xx=40 if number % 2 else 0)
        if number % 5 < 2
        else fine(f"r{number}")
        for number in range(total - ejected)
    ]
    if total - ejected <= 2:
        seen[:1] = [bad("r0", failures=40)]
        seen[1:] = [fine("r1")] * (total - ejected - 1)
    assert len(out(*seen, ejected=ejected, rules=OutlierRules(max_ejection_percent=percent))) == most


def test_the_worst_goes_first():
    seen = [fine("a"), fine("b"), fine("c"), bad("slow", itl_s=0.2), bad("slower", itl_s=0.4), fine("d")]
    assert out(*seen, rules=OutlierRules(max_ejection_percent=17)) == [("slower", "itl")]
    failing = bad("failing", failures=26)
    assert out(*seen, failing, rules=OutlierRules(max_ejection_percent=17)) == [("failing", "failure_percentage")]


def test_of_two_the_slower_one_is_no_outlier():
    assert out(fine("a"), bad("b", itl_s=10.0)) == []
    assert out(fine("a"), fine("b"), bad("c", itl_s=10.0)) == [("c", "itl")]
    assert out(fine("a", itl_s=None), fine("b"), bad("c", itl_s=10.0)) == []


def test_it_stays_out_longer_each_time_up_to_a_bound():
    assert [ejection_time_s(times, RULES) for times in (1, 2, 3, 20, 1000)] == [15, 30, 45, 300, 300]
    observed = Observed()
    assert [observed.ejected(now, RULES) for now in (0.0, 20.0, 60.0)] == [15, 30, 45]
    assert observed.ejected(60.0 + RULES.max_ejection_time_s + 1, RULES) == 15, "it has been fine for long"


def test_what_was_seen_is_of_the_window_and_needs_a_volume():
    observed = Observed()
    for number in range(RULES.latency_volume):
        assert observed.seen("r", float(number), RULES).itl_s is None
        observed.answered(200 if number % 2 else 500, float(number) / 10)
        observed.first_token(1.0, 1000, float(number) / 10)
        observed.paced(0.1, float(number) / 10)
    seen = observed.seen("r", 2.0, RULES)
    assert (seen.requests, seen.failures, seen.consecutive_5xx) == (20, 10, 0)
    assert (seen.ttft_s, seen.ttft_s_per_token, seen.itl_s) == (1.0, 0.001, 0.1)
    later = observed.seen("r", 2.0 + WINDOW_S, RULES)
    assert (later.requests, later.ttft_s, later.itl_s) == (0, None, None)
    observed.answered(500, 40.0)
    observed.ejected(40.0, RULES)
    assert observed.seen("r", 40.0, RULES) == Seen("r")


seens = st.lists(
    st.builds(
        Seen,
        replica=st.uuids().map(str),
        requests=st.integers(0, 100),
        failures=st.integers(0, 100),
        consecutive_5xx=st.integers(0, 20),
        ttft_s=st.none() | st.floats(0.0, 100.0),
        ttft_s_per_token=st.none() | st.floats(0.0, 1.0),
        itl_s=st.none() | st.floats(0.0, 10.0),
    ),
    max_size=12,
    unique_by=lambda each: each.replica,
)


@given(seens, st.integers(0, 12), st.floats(0.0, 100.0))
def test_whatever_is_seen_one_always_stays_and_nobody_goes_twice(seen, ejected, percent):
    found = find_outliers(seen, ejected, OutlierRules(max_ejection_percent=percent))
    names = [each.replica for each in found]
    assert len(set(names)) == len(names) <= max(len(seen) - 1, 0)
    assert set(names) <= {each.replica for each in seen}
    assert all(each.why for each in found)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(follow, "OUTLIERS_EVERY_S", 0.05)


async def ask(world):
    answer = await world.client().chat.completions.with_raw_response.create(**ASK)
    return answer.headers["x-quire-replica"]


async def test_a_replica_that_answers_500_gets_nothing_until_it_is_well(make_world, at_once):
    world = await make_world(3, {"policy": "roundRobin"}, outlier_base_ejection_s=0.2)
    sick = world.engines["r1"]
    sick.status = 500
    client = world.client()
    for _ in itertools.count():
        asked = [client.chat.completions.create(**ASK) for _ in range(6)]
        await asyncio.gather(*asked, return_exceptions=True)
        if world.routable() == {"r0", "r2"}:
            break
    async with world.http() as http:
        assert 'quire_gateway_ejections_total{cause="consecutive_5xx"' in (await http.get("/metrics")).text
    sick.status = 200
    await world.until_routable("r0", "r1", "r2")
    assert {await ask(world) for _ in range(6)} == {"r0", "r1", "r2"}


async def test_a_request_that_fails_everywhere_ejects_nobody(make_world, at_once):
    world = await make_world(3, {"policy": "roundRobin"})
    for engine in world.engines.values():
        engine.status = 500
    for _ in range(10):
        asked = [world.client().chat.completions.create(**ASK) for _ in range(6)]
        await asyncio.gather(*asked, return_exceptions=True)
    await asyncio.sleep(0.2)
    assert world.routable() == {"r0", "r1", "r2"}


async def test_a_replica_whose_first_tokens_are_late_is_left_alone(make_world, at_once):
    world = await make_world(3, {"policy": "roundRobin"}, outlier_base_ejection_s=1000.0)
    world.engines["r2"].first_delay_s = 3.0
    client = world.client()

    async def stream():
        async for _ in await client.chat.completions.create(**ASK, stream=True):
            pass

    while world.routable() != {"r0", "r1"}:
        await asyncio.gather(*(stream() for _ in range(24)))
    assert {await ask(world) for _ in range(4)} == {"r0", "r1"}
