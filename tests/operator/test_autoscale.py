"""The scaling law: tables that state their arithmetic, invariants, and a simulated fleet on a fake clock."""

from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_api.v1alpha1 import AutoscalingSpec
from quire_operator.autoscale import Decision, History, Load, ScalingLaw, desired_replicas

PLAIN = ScalingLaw(in_flight_per_replica=32, max_replicas=100)
TO_ZERO = ScalingLaw(in_flight_per_replica=4, min_replicas=0, max_replicas=5, scale_down_delay_s=30, idle_timeout_s=60)
SLO = ScalingLaw(in_flight_per_replica=1000, max_replicas=50, ttft_s=0.5, itl_s=0.05)


def fed(law: ScalingLaw, seen: Load, seconds: float, past: History | None = None, start: float = 0.0) -> Decision:
    """The decision after `seen` was true for so long, looked at each second, the number left as it is."""
    past = past or History.empty()
    now = start
    while True:
        decision = desired_replicas(seen, law, past, now)
        if now >= start + seconds:
            return decision
        past = replace(decision.history, wrote=None)
        now += 1.0


def settled(ready: int, law: ScalingLaw = SLO) -> History:
    """A history in which `ready` replicas have served for long, and were asked for all the while."""
    return fed(law, Load(in_flight=10**6, ready=ready, wanted=ready, ttft_s=0.5, itl_s=0.05), 60, start=-100).history


def test_starting_replicas_are_credited_before_scaling_up_again():
    load = Load(in_flight=90, held=0, ready=1, starting=2)  # 90 / 32 -> 3 wanted, 1 + 2 on their way
    assert desired_replicas(load, PLAIN, History.empty(), now=0.0).replicas == 3


@pytest.mark.parametrize("per_replica", [1, 2, 7, 32, 100])
@pytest.mark.parametrize("in_flight", [1, 2, 3, 6, 7, 8, 31, 32, 33, 64, 65, 96, 97, 100])
@pytest.mark.parametrize("held", [0, 1, 5])
def test_replicas_for_requests(per_replica, in_flight, held):
    law = replace(PLAIN, in_flight_per_replica=per_replica, max_replicas=10**6)
    decision = desired_replicas(Load(in_flight=in_flight, held=held, ready=1), law, History.empty(), 0.0)
    assert decision.replicas == ceil((in_flight + held) / per_replica)


@pytest.mark.parametrize(
    ("in_flight", "low", "high", "replicas"),
    [(0, 1, 5, 1), (0, 3, 5, 3), (40, 1, 5, 4), (1000, 1, 5, 5), (10, 2, 2, 2), (0, 0, 5, 1), (11, 0, 1, 1)],
)
def test_bounds_hold(in_flight, low, high, replicas):
    law = ScalingLaw(in_flight_per_replica=10, min_replicas=low, max_replicas=high)
    assert desired_replicas(Load(in_flight=in_flight, ready=1), law, History.empty(), 0.0).replicas == replicas


@pytest.mark.parametrize(("now", "bounds", "after"), [(7, (1, 3), 3), (1, (2, 3), 2), (0, (1, 3), 1), (9, (0, 2), 2)])
def test_a_number_outside_new_bounds_is_brought_in_at_once(now, bounds, after):
    law = ScalingLaw(min_replicas=bounds[0], max_replicas=bounds[1])
    assert desired_replicas(Load(ready=now), law, History.empty(), 0.0).replicas == after


class TestDelays:
    @pytest.mark.parametrize("spike_s", [1, 2])
    def test_an_odd_moment_starts_nothing(self, spike_s):
        calm = fed(PLAIN, Load(in_flight=10, ready=1), 20).history
        during = fed(PLAIN, Load(in_flight=100, ready=1), spike_s, calm, start=21)
        assert during.replicas == 1
        assert "more follow after 3s" in during.reason

    def test_what_lasts_starts_replicas(self):
        calm = fed(PLAIN, Load(in_flight=10, ready=1), 20).history
        after = fed(PLAIN, Load(in_flight=100, ready=1), 4, calm, start=21)
        assert after.replicas == 4
        assert after.reason == "1 -> 4: 100 requests in flight or held, 32 to a replica"

    def test_the_least_of_a_varying_load_is_taken(self):
        past = fed(PLAIN, Load(in_flight=10, ready=1), 20).history
        for second, in_flight in enumerate([200, 70, 300, 90, 100], start=21):
            decision = desired_replicas(Load(in_flight=in_flight, ready=1), PLAIN, past, float(second))
            past = replace(decision.history, wrote=None)
        assert decision.replicas == 3  # ceil(70 / 32)

    @pytest.mark.parametrize(("delay", "quiet", "replicas"), [(30, 10, 4), (30, 29, 4), (30, 32, 1), (300, 200, 4)])
    def test_replicas_go_when_they_were_not_needed_for_the_whole_delay(self, delay, quiet, replicas):
        law = replace(PLAIN, scale_down_delay_s=delay)
        busy = fed(law, Load(in_flight=120, ready=4), 10).history
        assert fed(law, Load(in_flight=3, ready=4), quiet, busy, start=11).replicas == replicas

    def test_they_go_to_the_most_that_was_needed_meanwhile(self):
        law = replace(PLAIN, scale_down_delay_s=30)
        past = fed(law, Load(in_flight=120, ready=4), 10).history
        past = fed(law, Load(in_flight=60, ready=4), 5, past, start=11).history
        decision = fed(law, Load(in_flight=1, ready=4), 28, past, start=16)
        assert decision.replicas == 2
        assert decision.reason == "4 -> 2: 1 request in flight or held, 32 to a replica, " + (
            "and no more were needed for 30s"
        )

    def test_the_first_look_after_a_restart_takes_nothing_away(self):
        decision = desired_replicas(Load(in_flight=1, ready=4), PLAIN, History.empty(), 1e9)
        assert decision.replicas == 4
        assert "fewer follow after 5m" in decision.reason

    def test_a_longer_delay_of_an_edit_counts_from_what_is_remembered(self):
        quick, slow = replace(PLAIN, scale_down_delay_s=5), replace(PLAIN, scale_down_delay_s=100)
        past = fed(slow, Load(in_flight=120, ready=4), 10).history
        assert fed(quick, Load(in_flight=3, ready=4), 7, past, start=11).replicas == 1

    def test_memory_does_not_grow_with_time(self):
        past = History.empty()
        for second in range(2000):
            load = Load(in_flight=(second * 37) % 300, ready=5, wanted=5)
            past = replace(desired_replicas(load, PLAIN, past, float(second)).history, wrote=None)
        assert len(past.highs) <= 10  # one entry for each number of replicas at most: ceil(299 / 32)
        assert len(past.lows) <= 4


class TestLatency:
    @pytest.mark.parametrize(
        ("ttft", "itl", "ready", "replicas"),
        [
            (0.5, 0.01, 4, 4),  # at the target
            (0.6, 0.01, 4, 5),  # 4 x 1.2
            (0.75, 0.01, 4, 6),  # 4 x 1.5
            (9.0, 0.01, 4, 8),  # 18, cut to twice
            (0.1, 0.06, 4, 5),  # ITL 1.2 decides
            (0.1, 0.50, 4, 8),
            (None, 0.06, 4, 5),
            (0.6, None, 4, 5),
            (0.51, 0.01, 1, 2),
            (0.51, 0.01, 10, 11),
        ],
    )
    def test_above_the_target_replicas_are_added(self, ttft, itl, ready, replicas):
        seen = Load(in_flight=500, ready=ready, wanted=ready, ttft_s=ttft, itl_s=itl)
        assert fed(SLO, seen, 5, settled(ready)).replicas == replicas

    @pytest.mark.parametrize(
        ("ttft", "ready", "replicas"),
        [
            (0.45, 4, 4),  # 4 x 0.9 / 0.8 = 4.5
            (0.40, 4, 4),
            (0.29, 4, 3),  # 4 x 0.58 / 0.8 = 2.9
            (0.20, 4, 2),  # 4 x 0.4 / 0.8
            (0.01, 4, 1),
            (0.36, 10, 9),
        ],
    )
    def test_below_it_replicas_go_only_if_the_rest_will_do(self, ttft, ready, replicas):
        seen = Load(in_flight=500, ready=ready, wanted=ready, ttft_s=ttft, itl_s=0.001)
        assert fed(SLO, seen, 310, settled(ready)).replicas == replicas

    def test_no_more_replicas_than_requests(self):
        seen = Load(in_flight=5, ready=4, wanted=4, ttft_s=3.0)
        assert fed(SLO, seen, 5, settled(4)).replicas == 5
        lonely = Load(in_flight=1, ready=1, wanted=1, ttft_s=3.0)
        assert fed(SLO, lonely, 500, settled(1)).replicas == 1

    def test_nothing_is_added_for_latency_while_replicas_start(self):
        seen = Load(in_flight=500, ready=2, starting=1, wanted=3, ttft_s=3.0)
        assert fed(SLO, seen, 100, settled(2)).replicas == 3

    def test_a_new_replica_is_measured_for_a_window_before_the_next(self):
        past = settled(2)
        seen = Load(in_flight=500, ready=3, wanted=3, ttft_s=3.0)
        assert fed(SLO, seen, 25, past).replicas == 3
        assert fed(SLO, seen, 45, past).replicas == 6

    def test_unmeasured_latency_takes_nothing_away(self):
        seen = Load(in_flight=500, ready=4, wanted=4)
        assert fed(SLO, seen, 1000, settled(4)).replicas == 4

    def test_without_targets_latency_says_nothing(self):
        seen = Load(in_flight=10, ready=1, wanted=1, ttft_s=100.0, itl_s=100.0)
        assert fed(PLAIN, seen, 100).replicas == 1

    def test_the_reason_names_the_target(self):
        seen = Load(in_flight=500, ready=4, wanted=4, ttft_s=0.75)
        assert fed(SLO, seen, 5, settled(4)).reason == "4 -> 6: TTFT 750ms of 500ms"


class TestMissingData:
    def test_a_silent_gateway_blocks_scale_down(self):
        law = replace(PLAIN, scale_down_delay_s=10)
        decision = fed(law, Load(in_flight=1, ready=4, is_complete=False), 1000)
        assert decision.replicas == 4
        assert "not every gateway" in decision.reason

    def test_it_blocks_going_to_zero(self):
        assert fed(TO_ZERO, Load(ready=1, idle_s=1e6, is_complete=False), 1000).replicas == 1

    def test_what_is_known_may_add_replicas(self):
        assert fed(PLAIN, Load(in_flight=100, ready=1, is_complete=False), 10).replicas == 4

    def test_the_delay_counts_anew_from_the_gap(self):
        law = replace(PLAIN, scale_down_delay_s=30)
        past = fed(law, Load(in_flight=1, ready=4), 25).history
        past = fed(law, Load(ready=4, is_complete=False), 0, past, start=26).history
        assert fed(law, Load(in_flight=1, ready=4), 29, past, start=27).replicas == 4
        assert fed(law, Load(in_flight=1, ready=4), 31, past, start=27).replicas == 1


class TestZero:
    @pytest.mark.parametrize(("idle", "replicas"), [(0, 1), (59, 1), (60, 0), (1e6, 0)])
    def test_the_last_replica_goes_after_the_idle_timeout(self, idle, replicas):
        past = fed(TO_ZERO, Load(in_flight=1, ready=1), 100).history
        decision = fed(TO_ZERO, Load(ready=1, idle_s=idle), 0, past, start=101)
        assert decision.replicas == replicas
        if not replicas:
            assert decision.reason == "1 -> 0: no request for 1m"

    def test_with_a_minimum_it_stays(self):
        law = replace(TO_ZERO, min_replicas=1)
        assert fed(law, Load(ready=1, idle_s=1e6), 1000).replicas == 1

    def test_a_request_held_or_running_keeps_it(self):
        assert fed(TO_ZERO, Load(in_flight=1, ready=1, idle_s=1e6), 1000).replicas == 1
        assert fed(TO_ZERO, Load(held=1, ready=1, idle_s=1e6), 1000).replicas == 1

    def test_a_first_replica_that_still_loads_is_not_taken_away(self):
        assert fed(TO_ZERO, Load(starting=1, idle_s=1e6), 10_000).replicas == 1

    def test_the_timeout_begins_when_it_serves(self):
        loading = fed(TO_ZERO, Load(starting=1, idle_s=1e6), 100).history
        assert fed(TO_ZERO, Load(ready=1, idle_s=1e6), 59, loading, start=101).replicas == 1
        assert fed(TO_ZERO, Load(ready=1, idle_s=1e6), 61, loading, start=101).replicas == 0

    def test_a_gateway_that_starts_anew_does_not_put_the_timeout_off(self):
        past = fed(TO_ZERO, Load(ready=1, in_flight=1, admitted=7), 100).history
        gone = fed(TO_ZERO, Load(ready=1, is_complete=False), 3, past, start=101).history
        assert fed(TO_ZERO, Load(ready=1, idle_s=5), 0, gone, start=159).replicas == 1
        assert fed(TO_ZERO, Load(ready=1, idle_s=5), 0, gone, start=160).replicas == 0

    def test_a_request_at_a_gateway_that_has_started_anew_puts_it_off(self):
        past = fed(TO_ZERO, Load(ready=1, in_flight=1, admitted=7), 100).history
        gone = fed(TO_ZERO, Load(ready=1, is_complete=False), 3, past, start=101).history
        asked = fed(TO_ZERO, Load(ready=1, idle_s=1, admitted=1), 0, gone, start=110).history
        assert fed(TO_ZERO, Load(ready=1, idle_s=58, admitted=1), 0, asked, start=168).replicas == 1
        assert fed(TO_ZERO, Load(ready=1, idle_s=60, admitted=1), 0, asked, start=170).replicas == 0

    @pytest.mark.parametrize(("held", "replicas"), [(1, 1), (4, 1), (5, 2), (9, 3), (1000, 5)])
    def test_held_requests_wake_as_many_as_they_need_at_once(self, held, replicas):
        asleep = fed(TO_ZERO, Load(idle_s=1e6), 100).history
        decision = fed(TO_ZERO, Load(held=held), 0, asleep, start=101)
        assert decision.replicas == replicas
        assert f"{held} request" in decision.reason

    def test_it_wakes_on_incomplete_data_too(self):
        assert fed(TO_ZERO, Load(held=1, is_complete=False), 0).replicas == 1

    def test_it_sleeps_on(self):
        decision = fed(TO_ZERO, Load(idle_s=5), 100)
        assert (decision.replicas, decision.reason) == (0, "stays at 0: no request")


class TestRivals:
    def test_who_scales_by_hand_is_followed_for_the_delay(self):
        law = replace(PLAIN, scale_down_delay_s=30)
        past = fed(law, Load(in_flight=10, ready=1, wanted=1), 100).history
        past = replace(past, wrote=1)
        decision = desired_replicas(Load(in_flight=10, ready=1, starting=4, wanted=5), law, past, 101.0)
        assert not decision.is_contested
        assert decision.replicas == 5
        later = Load(in_flight=10, ready=5, wanted=5)
        assert fed(law, later, 28, decision.history, start=102).replicas == 5
        assert fed(law, later, 30, decision.history, start=102).replicas == 1

    def test_two_laws_on_one_target_end_with_ours_standing_aside(self):
        past, rivals = History.empty(), 0
        for second in range(200):
            wanted = 1 if second % 10 else 6
            decision = desired_replicas(Load(in_flight=100, ready=4, wanted=wanted), PLAIN, past, float(second))
            past, rivals = decision.history, rivals + decision.is_contested
        assert rivals > 100
        assert decision.replicas == wanted
        assert "somebody else changed replicas" in decision.reason

    def test_new_bounds_are_no_rival(self):
        past = History.empty()
        for second in range(40):
            law = ScalingLaw(in_flight_per_replica=1, max_replicas=3 + second % 2)
            wanted = min(past.wrote or 1, law.max_replicas)
            decision = desired_replicas(Load(in_flight=100, ready=3, wanted=wanted), law, past, float(second))
            past = decision.history
        assert not decision.is_contested
        assert not past.rival_writes

    def test_it_takes_over_again_when_the_other_has_gone(self):
        past = replace(History.empty(), wrote=6, rival_writes=(1.0, 2.0, 3.0))
        assert desired_replicas(Load(in_flight=1, ready=6, wanted=6), PLAIN, past, 100.0).is_contested
        assert not desired_replicas(Load(in_flight=1, ready=6, wanted=6), PLAIN, past, 700.0).is_contested


def test_the_law_reads_the_spec():
    spec = AutoscalingSpec(max_replicas=7, min_replicas=0, idle_timeout="90s", scale_down_delay="1m")
    assert ScalingLaw.of(spec) == ScalingLaw(
        in_flight_per_replica=32, min_replicas=0, max_replicas=7, scale_down_delay_s=60, idle_timeout_s=90
    )


laws = st.builds(
    lambda per, low, more, ttft, down, idle: ScalingLaw(
        in_flight_per_replica=per,
        min_replicas=low,
        max_replicas=max(low + more, 1),
        ttft_s=ttft,
        scale_down_delay_s=down,
        idle_timeout_s=idle,
    ),
    st.integers(1, 64),
    st.integers(0, 5),
    st.integers(0, 20),
    st.none() | st.floats(0.01, 5),
    st.floats(0, 120),
    st.floats(0, 120),
)
loads = st.builds(
    Load,
    in_flight=st.integers(0, 2000),
    held=st.integers(0, 200),
    ready=st.integers(0, 25),
    starting=st.integers(0, 10),
    wanted=st.none() | st.integers(0, 40),
    ttft_s=st.none() | st.floats(0, 20),
    arrivals_per_s=st.none() | st.floats(0, 1000),
    service_s=st.none() | st.floats(0, 100),
    idle_s=st.floats(0, 1000),
    is_complete=st.booleans(),
)
walks = st.lists(st.tuples(loads, st.floats(0, 60)), min_size=1, max_size=12)


def walked(law: ScalingLaw, walk: list[tuple[Load, float]]) -> tuple[History, float]:
    past, now = History.empty(), 0.0
    for seen, step in walk:
        now += step
        past = replace(desired_replicas(seen, law, past, now).history, wrote=None, rival_writes=())
    return past, now


@given(laws, walks, loads)
@settings(max_examples=150, deadline=None)
def test_the_answer_is_within_the_bounds_whatever_came_before(law, walk, seen):
    past, now = walked(law, walk)
    assert law.min_replicas <= desired_replicas(seen, law, past, now).replicas <= law.max_replicas


@given(laws, walks, loads, st.integers(0, 500), st.integers(0, 50), st.floats(0, 5))
@settings(max_examples=150, deadline=None)
def test_more_load_never_means_fewer_replicas(law, walk, seen, more, held, slower):
    past, now = walked(law, walk)
    ttft = None if seen.ttft_s is None else seen.ttft_s + slower
    busier = replace(seen, in_flight=seen.in_flight + more, held=seen.held + held, ttft_s=ttft)
    less, much = (desired_replicas(load, law, past, now).replicas for load in (seen, busier))
    assert much >= less


@given(laws, walks, loads)
@settings(max_examples=150, deadline=None)
def test_incomplete_data_never_takes_a_replica_away(law, walk, seen):
    past, now = walked(law, walk)
    blind = replace(seen, is_complete=False)
    floor = min(max(seen.current, law.min_replicas), law.max_replicas)
    assert desired_replicas(blind, law, past, now).replicas >= floor


@given(laws, walks, loads)
@settings(max_examples=100, deadline=None)
def test_asking_twice_at_one_moment_changes_nothing(law, walk, seen):
    past, now = walked(law, walk)
    once = desired_replicas(seen, law, past, now)
    again = desired_replicas(seen, law, once.history, now)
    if seen.wanted is None:
        assert again.replicas == once.replicas or once.history.highs != again.history.highs


BACKLOG = ScalingLaw(in_flight_per_replica=10, max_replicas=20, scale_down_delay_s=300, scale_up_delay_s=3)


def lived(law: ScalingLaw, *phases: tuple[Load, float]) -> list[int]:
    """The numbers after each of the phases, replicas as many as are wanted from the phase's first second on."""
    past, now, numbers = History.empty(), 0.0, []
    for seen, seconds in phases:
        for _ in range(int(seconds)):
            decision = desired_replicas(replace(seen, wanted=past.wrote), law, past, now)
            past, now = decision.history, now + 1.0
        numbers.append(decision.replicas)
    return numbers


class TestBacklog:
    calm = Load(in_flight=8, ready=1, arrivals_per_s=2.0, service_s=4.0)
    few = Load(in_flight=150, ready=1, arrivals_per_s=5.0, service_s=20.0)
    enough = Load(in_flight=20, ready=15, arrivals_per_s=5.0, service_s=20.0)
    after = Load(in_flight=8, ready=15, arrivals_per_s=2.0, service_s=4.0)

    def test_what_piled_up_is_served_by_many_and_what_arrives_keeps_the_rest(self):
        # 150 / 10 -> 15. Of them last 5 a second x 4 s / 10 / 0.7 -> 3, for five minutes; then 8 / 10 -> 1.
        phases = (self.calm, 60), (self.few, 30), (self.enough, 50), (self.after, 60), (self.after, 300)
        assert lived(BACKLOG, *phases) == [1, 15, 15, 3, 1]

    def test_a_gateway_that_does_not_tell_arrivals_leaves_it_all_as_demand(self):
        phases = [(self.calm, 60), (self.few, 30), (self.enough, 50), (self.after, 60), (self.after, 300)]
        old = [(replace(seen, arrivals_per_s=None), seconds) for seen, seconds in phases]
        assert lived(BACKLOG, *old) == [1, 15, 15, 15, 1]

    def test_while_no_time_at_a_replica_is_known_all_of_a_backlog_lasts(self):
        first = replace(self.few, ready=0, in_flight=0, held=150, service_s=None)
        unknown = replace(self.after, service_s=None)
        none = Load(arrivals_per_s=0.0)
        assert lived(BACKLOG, (none, 5), (first, 30), (unknown, 120), (self.after, 10)) == [1, 15, 15, 3]

    def test_slow_answers_of_a_backlog_ask_for_nothing_until_a_minute_after_it(self):
        law = replace(BACKLOG, ttft_s=0.5, max_replicas=40)
        slow = replace(self.enough, ttft_s=5.0, starting=0)
        assert lived(law, (self.calm, 60), (self.few, 30), (slow, 58)) == [1, 15, 15]
        # 15 x min(10, 2) -> 30, no more than the 20 requests.
        assert lived(law, (self.calm, 60), (self.few, 30), (slow, 70)) == [1, 15, 20]

    @pytest.mark.parametrize("delay", [10, 30, 45, 300])
    def test_what_latency_needs_outlives_a_short_backlog(self, delay):
        """ITL is 1 ms for each request at a replica: 100 requests need 7 replicas for 15 ms, and 300 make a backlog."""
        law = ScalingLaw(in_flight_per_replica=32, max_replicas=40, itl_s=0.015, scale_down_delay_s=delay)
        past, replicas, numbers = History.empty(), 8, []
        for second in range(400):
            requests = 300 if 150 <= second < 162 else 100
            seen = Load(
                in_flight=requests,
                ready=replicas,
                wanted=replicas,
                itl_s=requests / replicas / 1000,
                arrivals_per_s=requests / 4.0,
                service_s=4.0,
            )
            decision = desired_replicas(seen, law, past, float(second))
            past, replicas = decision.history, decision.replicas
            numbers.append(replicas)
        assert min(numbers) >= 7

    def test_after_a_burst_one_more_stays_than_were_too_few_for_it(self):
        six = Load(in_flight=50, ready=6, arrivals_per_s=5.0, service_s=4.0)
        burst = replace(six, in_flight=150)
        # 150 / 10 -> 15; by what arrived 5 x 4 / 10 / 0.7 -> 3 would do, but it began with 6 ready.
        assert lived(BACKLOG, (six, 60), (burst, 30), (self.enough, 50), (self.after, 60)) == [6, 15, 15, 7]

    def test_a_moment_above_the_target_is_no_backlog(self):
        crowd = replace(self.calm, in_flight=25)
        # 3 replicas for two seconds that no delay bridges; then they are enough.
        assert lived(BACKLOG, (self.calm, 60), (crowd, 2), (self.calm, 30)) == [1, 1, 1]

    def test_what_came_with_room_for_it_lasts_in_full(self):
        # 90 / 10 -> 9 are there and needed: no backlog, so they stay five minutes whatever arrived.
        roomy = Load(in_flight=90, ready=9, arrivals_per_s=1.0, service_s=4.0)
        assert lived(BACKLOG, (roomy, 60), (replace(roomy, in_flight=5), 120)) == [9, 9]


class TestForesight:
    law = ScalingLaw(in_flight_per_replica=32, min_replicas=0)
    asleep = replace(History.empty(), start_s=20.0)
    burst = Load(held=45, arrivals_per_s=15.0)

    def test_what_comes_while_the_first_replicas_start_counts_from_the_beginning(self):
        decision = desired_replicas(self.burst, self.law, self.asleep, 0.0)
        assert decision.replicas == 11  # (45 + 15 x 20) / 32
        assert (
            decision.reason
            == "0 -> 11: 45 requests held for the first replica and 300 to come while replicas start, 32 to a replica"
        )
        # Ten seconds later as many are there or still to come.
        later = replace(self.burst, held=195, starting=11, wanted=11)
        assert desired_replicas(later, self.law, decision.history, 10.0).replicas == 11

    def test_nothing_is_foreseen_before_a_start_has_been_seen_or_where_nobody_tells_arrivals(self):
        assert desired_replicas(self.burst, self.law, History.empty(), 0.0).replicas == 2
        untold = replace(self.burst, arrivals_per_s=None)
        assert desired_replicas(untold, self.law, self.asleep, 0.0).replicas == 2

    def test_what_the_ready_replicas_serve_meanwhile_is_taken_off(self):
        past = replace(self.asleep, service_s=5.0)
        crowd = Load(in_flight=100, ready=2, arrivals_per_s=20.0)
        # 20 come and 32 x 2 / 5 = 12.8 go a second: (100 + 7.2 x 20) / 32 -> 8.
        assert desired_replicas(crowd, self.law, past, 0.0).replicas == 8
        assert desired_replicas(replace(crowd, arrivals_per_s=12.0), self.law, past, 0.0).replicas == 4
        # With room for all of them nothing piles up.
        assert desired_replicas(replace(crowd, in_flight=60), self.law, past, 0.0).replicas == 2

    def test_a_start_is_timed_from_the_decision_to_the_first_replica(self):
        past = desired_replicas(Load(held=40), self.law, History.empty(), 0.0).history
        for second in range(1, 17):
            past = desired_replicas(Load(held=40, starting=2, wanted=2), self.law, past, float(second)).history
        past = desired_replicas(Load(in_flight=40, ready=1, starting=1, wanted=2), self.law, past, 17.0).history
        assert past.start_s == 17.0

    def test_a_start_that_takes_minutes_counts_as_one(self):
        slow = replace(self.asleep, start_s=600.0)
        assert desired_replicas(self.burst, self.law, slow, 0.0).replicas == 30  # (45 + 15 x 60) / 32


class Fleet:
    """Replicas that take `start_s` to start and obey the law each second; `demand(t)` requests are there at t."""

    def __init__(self, law: ScalingLaw, replicas: int, start_s: int = 5) -> None:
        self.law, self.start_s, self.now = law, start_s, 0
        self.births = [-start_s] * replicas
        self.past = History.empty()
        self.numbers: list[int] = []
        self.idle_since = 0

    def step(self, requests: int) -> int:
        ready = sum(self.now - birth >= self.start_s for birth in self.births)
        if requests:
            self.idle_since = self.now
        seen = Load(
            in_flight=requests if ready else 0,
            held=0 if ready else requests,
            ready=ready,
            starting=len(self.births) - ready,
            wanted=len(self.births),
            idle_s=float(self.now - self.idle_since),
        )
        decision = desired_replicas(seen, self.law, self.past, float(self.now))
        self.past = decision.history
        while len(self.births) < decision.replicas:
            self.births.append(self.now)
        del self.births[decision.replicas :]
        self.numbers.append(decision.replicas)
        self.now += 1
        return decision.replicas

    def run(self, requests: int, seconds: int) -> list[int]:
        return [self.step(requests) for _ in range(seconds)]


@given(st.integers(0, 300), st.integers(1, 12), st.integers(1, 40), st.integers(0, 60), st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_under_constant_load_it_converges_and_never_moves_again(requests, replicas, per, delay, start_s):
    law = ScalingLaw(in_flight_per_replica=per, max_replicas=15, scale_down_delay_s=delay)
    fleet = Fleet(law, replicas, start_s)
    fleet.run(requests, delay + 10)
    rest = fleet.run(requests, 120)
    assert set(rest) == {min(max(ceil(requests / per), 1), 15)}
    moves = [a < b for a, b in zip(fleet.numbers, fleet.numbers[1:], strict=False) if a != b]
    assert len(set(moves)) <= 1, "it went one way only"


@given(st.lists(st.integers(40, 60), min_size=200, max_size=200))
@settings(max_examples=30, deadline=None)
def test_noise_smaller_than_the_delay_moves_it_up_at_most(noise):
    fleet = Fleet(ScalingLaw(in_flight_per_replica=10, max_replicas=20, scale_down_delay_s=60), 5)
    for requests in noise:
        fleet.step(requests)
    changes = sum(a != b for a, b in zip(fleet.numbers, fleet.numbers[1:], strict=False))
    assert changes <= 4  # between 4 and 6 replicas in 200 s of noise, where each second asks for another number
    assert set(fleet.numbers) <= {4, 5, 6}


def test_zero_to_burst_to_zero():
    fleet = Fleet(TO_ZERO, 0, start_s=10)
    assert fleet.run(0, 100) == [0] * 100
    assert fleet.step(1) == 1
    fleet.run(9, 10)
    assert fleet.numbers[-1] == 3  # ceil(9 / 4), without one too many while they start
    assert set(fleet.run(9, 100)) == {3}
    down = fleet.run(0, 200)
    assert down[-1] == 0
    assert [number for number in range(4) if number in down] == [0, 1, 3]
    assert down.index(1) >= 29
    assert down.index(0) >= 59


def test_a_slow_start_does_not_overshoot():
    fleet = Fleet(ScalingLaw(in_flight_per_replica=8, max_replicas=50), 1, start_s=180)
    assert max(fleet.run(40, 600)) == 5
