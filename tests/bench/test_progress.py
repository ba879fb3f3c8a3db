"""What a bench of many runs says while it runs."""

import re
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from gateway_bench import progress


def test_each_run_that_ends_is_told_and_results_keep_their_order(capsys):
    second_is_done = Event()

    def first():
        assert second_is_done.wait(60)
        return "first"

    def second():
        second_is_done.set()
        return "second"

    with ThreadPoolExecutor(2) as pool:
        assert progress.results("part", [pool.submit(first), pool.submit(second)]) == ["first", "second"]
    assert list(progress.each("other", ["a", "b", "c"])) == ["a", "b", "c"]
    told = [re.sub(r"[\d.]+ min", "T", line) for line in capsys.readouterr().out.splitlines()]
    assert told == [f"part: {number} of 2 runs, T" for number in (1, 2)] + [
        f"other: {number} of 3 runs, T" for number in (1, 2, 3)
    ]


def test_a_run_that_fails_is_not_left_out():
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        progress.results("part", [pool.submit(lambda: 1), pool.submit(lambda: 1 // 0)])
