"""Which steps are recorded, and when; the graphs themselves need a GPU (tests/runtime/gpu)."""

import pytest

from quire_runtime.execute import graphs, mixed_graphs
from quire_runtime.execute.mixed_graphs import TOKENS, MixedShape
from quire_runtime.execute.recordings import PATIENCE, Recordings


@pytest.fixture
def recorded():
    return []


@pytest.fixture
def make_recordings(recorded):
    def record(shape):
        recorded.append(shape)
        return f"step {shape}"

    return lambda has_room=lambda: True: Recordings([1, 2, 4, 8], record, has_room)


@pytest.fixture
def recordings(make_recordings):
    return make_recordings()


def record_all(recordings):
    while recordings.record_wished() or recordings.record_rest():
        pass


def test_a_shape_that_no_other_covers_is_recorded_when_it_is_asked_for_again(recordings, recorded):
    assert recordings.find(2) is None
    assert recorded == []
    assert recordings.find(2) == recordings.find(2) == "step 2"
    assert recorded == [2]


def test_one_that_covers_it_serves_until_it_has_been_asked_for_often(recordings, recorded):
    recordings.record(8)
    for _ in range(PATIENCE - 1):
        assert recordings.find(2, covering=[2, 4, 8]) == "step 8"
    assert recorded == [8]
    assert recordings.find(2, covering=[2, 4, 8]) == "step 2"


def test_in_a_quiet_moment_what_was_asked_for_is_recorded_before_the_rest(recordings, recorded):
    recordings.record(1)
    recordings.find(8)
    recordings.find(4)
    record_all(recordings)
    assert recorded == [1, 8, 4, 2]
    assert not recordings.record_rest()


def test_what_quiet_moments_have_recorded_is_found_at_once(recordings, recorded):
    record_all(recordings)
    assert recordings.find(4) == "step 4"
    assert recorded == [1, 2, 4, 8]


def test_without_room_nothing_more_is_recorded_and_steps_go_on_as_they_can(make_recordings, recorded):
    recordings = make_recordings(has_room=lambda: False)
    recordings.record(8)
    record_all(recordings)
    for _ in range(2 * PATIENCE):
        assert recordings.find(1) is None
        assert recordings.find(2, covering=[2, 4, 8]) == "step 8"
    assert recorded == [8]


@pytest.mark.parametrize("n", [1, 3, 17, 100, 256])
def test_decodes_are_covered_by_sizes_at_most_twice_theirs_the_nearest_first(n):
    sizes = [size for size in graphs.graph_sizes(256) if size >= n]
    found = graphs.covering(sizes, has_shared=False)
    assert found[0] == (sizes[0], False)
    assert found == sorted(found)
    assert all(n <= size <= 2 * sizes[0] for size, _ in found)


def test_what_sequences_share_is_read_once_where_such_a_graph_is_there_and_else_by_each():
    assert graphs.covering([8, 16], has_shared=True) == [(8, True), (8, False), (16, True), (16, False)]


@pytest.mark.parametrize("most", [1, 16, 48, 256, 1024])
def test_every_short_step_with_prompts_has_a_shape_that_quiet_moments_record(most):
    sequences = mixed_graphs.sequence_sizes(most)
    shapes = mixed_graphs.shapes(sequences)
    assert len(shapes) == len(set(shapes))
    for tokens in (1, 17, 250, 1024):
        for n in {1, min(2, most, tokens), min(most, tokens, 256)}:
            size = next(size for size in sequences if size >= n)
            asked = MixedShape(next(each for each in TOKENS if each >= tokens), size, has_decodes=False)
            assert set(mixed_graphs.covering(asked, sequences)) & set(shapes)


def test_a_step_is_covered_by_at_most_twice_its_tokens_and_the_cheapest_comes_first():
    found = mixed_graphs.covering(MixedShape(96, 4, True), [1, 4, 16])
    assert found[0] == MixedShape(96, 4, True)
    assert [(shape.tokens, shape.sequences) for shape in found] == [
        (tokens, size) for tokens in (96, 128, 192) for size in (4, 16)
    ]
    assert all(shape.has_decodes for shape in found)
