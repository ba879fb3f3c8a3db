"""What keys may use: no window of a minute ever holds more than was allowed, whatever is asked."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_api.wire import KeyLimits
from quire_gateway.admission import most_output
from quire_gateway.limits import OverLimit, Permit, Totals, Usage, allowances
from quire_gateway.minute import Minute
from quire_gateway.output import OutputCount

STEPS = st.lists(st.tuples(st.floats(0, 40), st.integers(0, 30)), max_size=60)


@given(STEPS)
def test_a_minute_holds_the_last_60_seconds_and_nothing_older_than_61(steps):
    minute, now, log = Minute(), 1000.3, []
    for pause, amount in steps:
        now += pause
        minute.add(amount, now)
        log.append((now, amount))
        last_60 = sum(each for at, each in log if now - at <= 60)
        last_61 = sum(each for at, each in log if now - at < 61)
        assert last_60 <= minute.total(now) <= last_61


@given(STEPS, st.integers(1, 60), st.integers(1, 60))
def test_room_comes_exactly_when_it_is_said(steps, room, limit):
    minute, now = Minute(), 5.5
    for pause, amount in steps:
        now += pause
        minute.add(amount, now)
    wait = minute.room_in(room, limit, now)
    if room > limit:
        assert wait == float("inf")
        return
    assert minute.total(now + wait + 1e-6) + room <= limit
    if wait > 0.01:
        assert minute_total_before(minute, steps, now + wait - 0.01) + room > limit


def minute_total_before(minute, steps, at):
    """What a second minute with the same history says at `at` (the first one has moved on)."""
    twin, now = Minute(), 5.5
    for pause, amount in steps:
        now += pause
        twin.add(amount, now)
    return twin.total(at)


@pytest.mark.parametrize("pause", [0.0, 0.5, 59.9, 61.0, 200.0])
def test_what_is_taken_back_is_gone_and_nothing_else(pause):
    minute = Minute()
    minute.add(5, 10.0)
    second = minute.add(7, 10.0 + pause)
    minute.take_back(7, second)
    assert minute.total(10.0 + pause) == (5 if pause < 61 else 0)
    minute.take_back(7, second - 100)
    assert minute.total(10.0 + pause) == (5 if pause < 61 else 0)


LIMITS = KeyLimits(requests_per_minute=5, input_tokens_per_minute=100, output_tokens_per_minute=80, concurrency=3)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 20),  # pause
            st.sampled_from(["ask", "write", "end", "abandon"]),
            st.integers(0, 130),  # prompt tokens
            st.integers(0, 100),  # max_tokens
        ),
        max_size=120,
    )
)
def test_limits_are_never_exceeded_in_any_minute(steps):
    usage, now = Usage(), 0.0
    running: deque[list] = deque()
    requests, inputs, outputs = [], [], []
    for pause, step, prompt, most in steps:
        now += pause
        if step == "ask":
            try:
                permit = Permit(usage, LIMITS, now)
            except OverLimit:
                continue
            requests.append((now, 1))
            try:
                permit.take_tokens(prompt, most, now)
            except OverLimit:
                permit.end(now, was_served=False)
                continue
            inputs.append((now, prompt))
            running.append([permit, most])
        elif running:
            permit, left = running[0]
            running.rotate(-1)
            if step == "write":
                written = min(left, prompt)
                permit.wrote(written, now)
                outputs.append((now, written))
                running[-1][1] -= written
            else:
                permit.end(now, was_served=True)
                permit.end(now, was_served=True)  # once is enough
                running.pop()
        assert len(running) <= 3
        for events, limit in ((requests, 5), (inputs, 100), (outputs, 80)):
            assert sum(amount for at, amount in events if now - at <= 60) <= limit
    for permit, _ in running:
        permit.end(now, was_served=True)
    assert (usage.in_flight, usage.reserved) == (0, 0)


def test_an_answer_of_unknown_length_reserves_what_is_usual_and_is_paid_afterwards():
    usage = Usage()
    permit = Permit(usage, KeyLimits(output_tokens_per_minute=1000), 0.0)
    permit.take_tokens(10, None, 0.0)
    assert usage.reserved == 256
    permit.wrote(1200, 1.0)
    permit.end(1.0, was_served=True)
    late = Permit(usage, KeyLimits(output_tokens_per_minute=1000), 2.0)
    with pytest.raises(OverLimit) as caught:
        late.take_tokens(10, None, 2.0)
    assert caught.value.limit == "output_token"
    assert 58 <= caught.value.retry_after_s <= 61
    assert usage.typical_output == pytest.approx(256 + 0.1 * (1200 - 256))


def test_what_can_never_be_served_says_so():
    permit = Permit(Usage(), LIMITS, 0.0)
    with pytest.raises(OverLimit) as caught:
        permit.take_tokens(101, 1, 0.0)
    assert caught.value.is_final
    with pytest.raises(OverLimit) as caught:
        permit.take_tokens(1, 81, 0.0)
    assert caught.value.is_final


def test_a_request_that_no_replica_saw_gives_its_prompt_back():
    usage = Usage()
    permit = Permit(usage, LIMITS, 0.0)
    permit.take_tokens(100, 10, 0.0)
    permit.end(5.0, was_served=False)
    Permit(usage, LIMITS, 5.0).take_tokens(100, 10, 5.0)


def test_what_other_gateways_let_in_counts_here():
    usage = Usage()
    usage.heard(Totals(requests=5), 0.0)
    with pytest.raises(OverLimit):
        Permit(usage, LIMITS, 1.0)
    usage.others_in_flight = 3
    with pytest.raises(OverLimit) as caught:
        Permit(usage, LIMITS, 100.0)
    assert caught.value.limit == "concurrency"


def test_allowances_count_what_is_reserved():
    usage = Usage()
    Permit(usage, LIMITS, 0.0).take_tokens(30, 20, 0.0)
    told = {each.name: (each.limit, each.remaining) for each in allowances(usage, LIMITS, 0.0)}
    assert told == {"requests": (5, 4), "input-tokens": (100, 70), "output-tokens": (80, 60)}
    assert list(allowances(usage, KeyLimits(concurrency=3), 0.0)) == []


@pytest.mark.parametrize(
    ("body", "most"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 5, "n": 3}, 15),
        ({"max_tokens": 7, "prompt": ["a", "b"], "n": 2}, 28),
        ({"max_tokens": 7, "prompt": [1, 2, 3]}, 7),
        ({"max_tokens": "7"}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 7, "n": "x"}, 7),
    ],
)
def test_what_a_request_may_write(body, most):
    assert most_output(body) == most


class TestOutputCount:
    def test_a_stream_that_does_not_tell_brings_one_token_an_event(self):
        told = []
        count = OutputCount(told.append)
        for _ in range(20):
            count.saw_events(b"data: {}\n\n")
        count.saw_events(b'data: {}\n\ndata: {"choices":[],"usage":{}}\n\ndata: [DONE]\n\n')
        count.end(is_stream=True)
        assert sum(told) == count.told == 21
        assert len(told) == 2

    @pytest.mark.parametrize("cut", [1, 30, 60])
    def test_a_whole_answer_says_its_number_however_it_is_cut(self, cut):
        body = rb'{"text": "\"completion_tokens\": 9999", "usage": {"prompt_tokens": 3, "completion_tokens": 42}}'
        told = []
        count = OutputCount(told.append)
        for start in range(0, len(body), cut):
            count.saw_body(body[start : start + cut])
        count.end(is_stream=False)
        assert told == [42]

    def test_an_answer_that_says_nothing_counts_nothing(self):
        told = []
        count = OutputCount(told.append)
        count.saw_body(rb'{"text": "\"completion_tokens\": 9999"}')
        count.end(is_stream=False)
        assert told == []
