import logging

import pytest

from quire_runtime.agent.progress import Meter, Phase, Stopped, logged


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_time_left_are_of_the_last_seconds():
    clock = Clock()
    meter = Meter("s3://b/m", "/m", clock)
    for second in range(61):
        clock.now = float(second)
        # 10 bytes a second for half a minute, then 100
        meter.report(10 * second if second <= 30 else 300 + 100 * (second - 30), 4300)
    standing = meter.standing()
    assert (standing.bytes_done, standing.bytes_per_second, standing.eta_seconds) == (3300, 100.0, 10.0)


def test_what_earlier_runs_left_is_done_but_not_fetched():
    clock = Clock()
    meter = Meter("s3://b/m", "/m", clock)
    meter.report(400, 1000)
    clock.now = 2.0
    meter.report(600, 1000)
    assert meter.standing().bytes_per_second == 100.0
    assert meter.fetched_bytes == 200


def test_a_stalled_fetch_has_no_time_left_to_tell():
    clock = Clock()
    meter = Meter("s3://b/m", "/m", clock)
    meter.report(0, 1000)
    clock.now = 1.0
    meter.report(100, 1000)
    clock.now = 60.0
    assert meter.standing().bytes_per_second == 0
    assert meter.standing().eta_seconds is None


def test_time_stands_still_once_it_ended():
    clock = Clock()
    meter = Meter("s3://b/m", "/m", clock)
    meter.report(0, 2_000_000_000)
    clock.now = 4.0
    meter.report(2_000_000_000, 2_000_000_000)
    meter.ended(Phase.COMPLETE)
    clock.now = 100.0
    assert meter.standing().sentence == "complete: 2.00 of 2.00 GB in 4 s"


def test_a_fetch_that_is_told_to_stop_does_so_at_its_next_word():
    meter = Meter("s3://b/m", "/m")
    meter.report(1, 2)
    meter.stop()
    with pytest.raises(Stopped):
        meter.report(2, 2)
    with pytest.raises(Stopped):
        meter.pause(60)


def test_the_log_is_told_now_and_then(caplog: pytest.LogCaptureFixture):
    clock = Clock()
    report = logged("s3://b/m", clock)
    with caplog.at_level(logging.INFO):
        for second in range(13):
            clock.now = float(second)
            report(100_000_000 * second, 2_400_000_000)
    assert [record.message for record in caplog.records] == [
        "s3://b/m fetching: 0.50 of 2.40 GB, 100 MB/s, 19 s left",
        "s3://b/m fetching: 1.00 of 2.40 GB, 100 MB/s, 14 s left",
    ]
