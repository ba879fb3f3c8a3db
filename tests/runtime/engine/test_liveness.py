"""Who may speak for a loop that has not turned for a while."""

from hypothesis import given
from hypothesis import strategies as st

from quire_runtime.engine.liveness import STILL_S, WORK_SHARE, Liveness


def test_a_loop_that_has_turned_lately_lives_whatever_it_computes():
    loop = Liveness(0.0, 0.0)
    assert loop.is_alive(STILL_S, 0.0)
    loop.turned(10.0, 0.0)
    assert loop.is_alive(10.0 + STILL_S, 0.0)


def test_a_step_of_minutes_lives_as_long_as_its_thread_computes():
    loop = Liveness(0.0, 0.0)
    for asked in range(1, 200):
        assert loop.is_alive(0.6 * asked, 0.1 * asked)


def test_what_was_computed_before_the_last_turn_speaks_for_nobody():
    loop = Liveness(0.0, 0.0)
    loop.turned(100.0, 90.0)
    assert not loop.is_alive(100.6, 90.0)


def test_what_was_computed_before_the_last_question_neither():
    loop = Liveness(0.0, 0.0)
    assert loop.is_alive(0.6, 0.3)
    assert not loop.is_alive(1.2, 0.3)
    assert loop.is_alive(1.8, 0.6), "it goes on"


@given(st.floats(0.0, 1e6), st.lists(st.floats(STILL_S + 0.01, 10.0), min_size=1, max_size=20))
def test_one_that_neither_turns_nor_computes_is_never_vouched_for(start, gaps):
    loop = Liveness(start, 5.0)
    now = start
    for gap in gaps:
        now += gap
        assert not loop.is_alive(now, 5.0)


@given(st.floats(STILL_S + 0.01, 100.0), st.floats(2 * WORK_SHARE, 1.0))
def test_a_small_share_of_the_core_is_enough(gap, share):
    assert Liveness(0.0, 0.0).is_alive(gap, share * gap)
