"""The scaling law's memory outlives who keeps it, and is written when there is something to write."""

from dataclasses import replace

import pytest

from quire_operator.autoscale import History, Load, ScalingLaw, desired_replicas
from quire_operator.scaling_memory import SAVE_EVERY_S, Saved, from_text, to_text

LAW = ScalingLaw(in_flight_per_replica=1, min_replicas=0, max_replicas=10)


def run(history, start, looks):
    """The last decision of looks each second, and when the next one is."""
    for second, seen in enumerate(looks):
        decision = desired_replicas(seen, LAW, history, start + second)
        history = decision.history
    return decision, start + len(looks)


def serving(count, ready=None):
    ready = count if ready is None else ready
    return Load(in_flight=count, ready=ready, wanted=ready)


def idle(ready, seconds):
    return Load(ready=ready, wanted=ready, idle_s=seconds)


def handed_over(history, now):
    """To a leader whose clock has another beginning, a minute later by the wall's."""
    restored = from_text(to_text(history, now, 1_000_000.0), 77.0, 1_000_060.0)
    assert restored is not None
    return restored, 77.0


def test_a_new_leader_does_not_scale_down_at_once_nor_waits_all_over_again():
    before, now = run(History.empty(), 0.0, [serving(5)] * 10)
    before, now = run(before.history, now, [serving(1, ready=5)] * 200)
    restored, now = handed_over(before.history, now)
    after, _ = run(restored, now, [serving(1, ready=5)] * 5)
    assert after.replicas == 5
    # 300 s after the five were needed last, of which 200 and a minute had gone before.
    looks, history = 0, restored
    while (decision := desired_replicas(serving(1, ready=5), LAW, history, now + looks)).replicas == 5:
        history = decision.history
        looks += 1
    assert 38 <= looks <= 42


def test_a_new_leader_knows_for_how_long_the_last_replica_has_been_ready():
    """idleTimeout is 600 s; 500 and a minute of them had gone."""
    before, now = run(History.empty(), 0.0, [idle(1, 0.0)])
    before, now = run(before.history, now + 500.0, [idle(1, 500.0)])
    restored, now = handed_over(before.history, now)
    assert run(restored, now, [idle(1, 561.0)])[0].replicas == 1
    assert run(restored, now + 41.0, [idle(1, 602.0)])[0].replicas == 0
    assert run(History.empty(), now + 41.0, [idle(1, 602.0)])[0].replicas == 1


def test_a_new_leader_stands_aside_as_long_as_the_former_would_have():
    decision, now = run(History.empty(), 0.0, [serving(2)])
    for wanted in (5, 2, 5, 2, 5):
        decision, now = run(decision.history, now, [replace(serving(2), wanted=wanted)] * 5)
    assert decision.is_contested
    restored, now = handed_over(decision.history, now)
    assert run(restored, now, [serving(2)])[0].is_contested


def test_what_needs_more_is_started_by_a_new_leader_as_by_one_that_starts():
    restored, now = handed_over(run(History.empty(), 0.0, [serving(2)] * 10)[0].history, 10.0)
    assert run(restored, now, [serving(6, ready=2)])[0].replicas == 6


@pytest.mark.parametrize("text", ["", "{", "[]", '{"highs": 3}', '{"lows": [["a", 1]]}'])
def test_what_cannot_be_understood_is_no_memory(text):
    assert from_text(text, 0.0, 0.0) is None


def writes(looks):
    """How often a memory is written over looks each second."""
    saved, history, count = Saved(), History.empty(), 0
    for second, seen in enumerate(looks):
        history = desired_replicas(seen, LAW, history, float(second)).history
        if saved.is_due(history, float(second)):
            saved.wrote(history, float(second))
            count += 1
    return count


def test_a_deployment_at_which_nothing_changes_is_written_once():
    assert writes([serving(1)] * 3600) == 1
    assert writes([idle(0, second) for second in range(3600)]) == 1


def test_a_busy_one_is_written_each_minute_at_most_and_a_change_of_replicas_at_once():
    looks = [serving(1 + second * 7 % 4, ready=4) for second in range(600)]
    assert 1 <= writes(looks) <= 600 / SAVE_EVERY_S + 1
    assert writes([serving(1, ready=1)] * 5 + [serving(1, ready=2)] * 5) == 2


def test_a_new_leader_knows_how_long_a_start_takes_and_what_was_too_few_for_a_burst():
    history = replace(History.empty(), start_s=20.0, raised_at=90.0, outgrown=((95.0, 7),), relieved_ready=6)
    restored, now = handed_over(history, 100.0)
    # The start began ten seconds and a minute ago; the newest of a series counts until now.
    assert (restored.start_s, restored.raised_at) == (20.0, now - 70.0)
    assert (restored.outgrown, restored.relieved_ready) == (((now, 7),), 6)
