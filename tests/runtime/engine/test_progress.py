"""What is told of a start while it goes on, and its seconds by phase."""

import pytest

from quire_runtime.config import EngineConfig
from quire_runtime.engine import progress
from quire_runtime.engine.load import load
from quire_runtime.engine.progress import StartProgress

GiB = 2**30


@pytest.fixture
def clock():
    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    return Clock()


def test_a_phase_within_another_counts_for_itself(clock):
    start = StartProgress(clock=clock)
    with start.phase("memory"):
        clock.now += 1
        with start.phase("kernels"):
            clock.now += 10
        clock.now += 2
    with start.phase("kernels"):
        clock.now += 4
    assert start.seconds == {"memory": 3, "kernels": 14}


def test_after_an_error_the_phase_that_it_ended_is_known(clock):
    start = StartProgress(clock=clock)
    with pytest.raises(MemoryError), start.phase("memory"), start.phase("kernels"):
        raise MemoryError
    assert start.current == "kernels"


def test_reading_is_told_once_a_second_with_share_and_rate(clock, caplog):
    caplog.set_level("INFO")
    told = []
    start = StartProgress(lambda *what: told.append(what), clock)
    with start.phase("weights"):
        for done in range(17):
            clock.now += 0.25
            start.read(done * GiB, 16 * GiB)
    assert told == [("weights", None), ("weights", 18), ("weights", 43), ("weights", 68), ("weights", 93)]
    assert "weights: 7.00 of 16.00 GiB (43 %), 3.50 GiB/s" in caplog.text


def test_each_phase_of_a_real_start_is_told_and_the_weights_to_their_end(tiny_model_dir, monkeypatch):
    monkeypatch.setattr(progress, "TOLD_EVERY_S", 0.0)
    told = []
    loaded = load(EngineConfig.of(model=str(tiny_model_dir("llama")), device="cpu"), lambda *what: told.append(what))
    begun = [phase for phase, percent in told if percent is None]
    assert list(dict.fromkeys(begun)) == ["fetch", "weights", "memory", "kernels", "graphs"] == list(loaded.startup_s)
    shares = [percent for phase, percent in told if percent is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert len(shares) > 3
