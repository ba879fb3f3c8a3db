"""Order of service: fair between keys, by priority, and nobody waits for ever."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_gateway.fair import AGING_EVERY, OUTPUT_PRICE, FairQueue, QueueFull


def served(queue):
    order = []
    while (place := queue.pop()) is not None:
        order.append(place.item)
    return order


def test_one_key_is_served_in_the_order_of_arrival():
    queue = FairQueue(10)
    for number in range(5):
        queue.push(number, "a", 10)
    assert served(queue) == [0, 1, 2, 3, 4]


def test_a_request_behind_anothers_hundred_is_next():
    queue = FairQueue(200)
    for number in range(100):
        queue.push(("a", number), "a", 10)
    assert queue.pop().item == ("a", 0)
    queue.push(("b", 0), "b", 10)
    assert ("b", 0) in (queue.pop().item, queue.pop().item)


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=20),
    st.lists(st.integers(1, 500), min_size=1, max_size=20),
    st.lists(st.integers(0, 60), min_size=1, max_size=20),
)
def test_backlogged_keys_get_equal_service_within_the_papers_bound(prompts_a, prompts_b, outputs):
    # Both wait all the time; 8 requests are in flight, each answer comes 8 turns after its prompt.
    queue, service, flying = FairQueue(4), {"a": 0.0, "b": 0.0}, []
    prompts = {"a": prompts_a, "b": prompts_b}
    bound = 2 * max(max(prompts_a + prompts_b), OUTPUT_PRICE * 8 * max(outputs))
    for turn in range(300):
        for key in "ab":
            while queue.places_of(key) < 2:
                queue.push(key, key, prompts[key][turn % len(prompts[key])])
        place = queue.pop()
        service[place.flow] += place.tokens
        flying.append((place.flow, outputs[turn % len(outputs)]))
        if len(flying) == 8:
            key, tokens = flying.pop(0)
            queue.charge(key, OUTPUT_PRICE * tokens)
            service[key] += OUTPUT_PRICE * tokens
        assert abs(service["a"] - service["b"]) <= bound


def test_who_left_is_forgotten_and_who_waits_is_not():
    queue = FairQueue(10)
    for key in "abc":
        queue.push(key, key, 100)
    for _ in range(2):
        queue.pop()
    queue.charge("c", 30)
    queue.retain(["b"])
    assert [queue.counter(key) for key in "abc"] == [0.0, 100.0, 30.0]
    assert served(queue) == ["c"]
    queue.retain([])
    assert [queue.counter(key) for key in "abc"] == [0.0, 0.0, 0.0]


def test_weights_divide_the_service():
    queue, service = FairQueue(10), {"heavy": 0, "light": 0}
    for _ in range(400):
        for key, weight in (("heavy", 3.0), ("light", 1.0)):
            while queue.places_of(key) < 2:
                queue.push(key, key, 10, weight=weight)
        service[queue.pop().flow] += 1
    assert service["heavy"] == pytest.approx(300, abs=2)


def test_idleness_saves_nothing_up():
    queue = FairQueue(100)
    for _ in range(50):
        queue.push("busy", "busy", 100)
        queue.pop()
    for number in range(10):
        queue.push(f"busy {number}", "busy", 100)
        queue.push(f"idle {number}", "idle", 100)
    first = [queue.pop().flow for _ in range(10)]
    assert first.count("busy") == 5


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3), st.integers(1, 1000)), min_size=1, max_size=150))
def test_nobody_waits_for_ever_whatever_comes_later(arrivals):
    # One victim of the worst priority; after each turn somebody better comes.
    queue = FairQueue(1000)
    queue.push("victim", "victim", 10**6, priority=100)
    ahead = 0
    for key, priority, tokens in arrivals * 4:
        queue.push("other", f"k{key}", tokens, priority=priority)
        if queue.pop().item == "victim":
            break
        ahead += 1
    assert ahead < AGING_EVERY or len(arrivals) * 4 < AGING_EVERY


def test_lower_priorities_go_first_and_ranks_order_a_keys_own():
    queue = FairQueue(10)
    queue.push("batch", "b", 1, priority=5)
    queue.push("late", "a", 1, rank=3)
    queue.push("soon", "a", 1, rank=-1)
    queue.push("urgent", "u", 1000, priority=-1)
    assert served(queue) == ["urgent", "soon", "late", "batch"]


class TestFull:
    def test_the_greediest_key_loses_its_newest_place(self):
        queue = FairQueue(3)
        for number in range(3):
            queue.push(number, "greedy", 1)
        place, lost = queue.push("new", "modest", 1)
        assert (lost.item, len(queue)) == (2, 3)
        with pytest.raises(QueueFull):
            queue.push("more", "greedy", 1)
        assert queue.remove(place)
        assert not queue.remove(place)
        assert not queue.remove(lost)

    def test_a_worse_priority_loses_to_a_better_one_never_the_other_way(self):
        queue = FairQueue(1)
        queue.push("batch", "b", 1, priority=5)
        _, lost = queue.push("chat", "c", 1)
        assert lost.item == "batch"
        with pytest.raises(QueueFull):
            queue.push("batch", "b", 1, priority=5)

    def test_nobody_waits_in_a_queue_without_places(self):
        with pytest.raises(QueueFull):
            FairQueue(0).push("x", "a", 1)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.sampled_from(["push", "pop", "remove"]), st.integers(0, 4), st.integers(0, 2)), max_size=200)
)
def test_every_place_is_served_lost_or_given_up_once(steps):
    queue, waiting, capacity = FairQueue(6), [], 6
    for step, key, priority in steps:
        if step == "push":
            try:
                place, lost = queue.push(object(), f"k{key}", 5, priority=priority)
            except QueueFull:
                assert len(waiting) == capacity
                continue
            waiting.append(place)
            if lost is not None:
                waiting.remove(lost)
        elif step == "pop":
            place = queue.pop()
            assert (place is None) == (not waiting)
            if place is not None:
                waiting.remove(place)
        elif waiting:
            assert queue.remove(waiting.pop(key % len(waiting)))
        assert len(queue) == len(waiting) <= capacity
        for number in range(5):
            assert queue.places_of(f"k{number}") == sum(place.flow == f"k{number}" for place in waiting)
