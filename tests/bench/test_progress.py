"""What a bench of many runs says while it runs."""

import argparse
import json
import re
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from gateway_bench import __main__ as bench
from gateway_bench import progress, report


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
    told = [re.sub(r"[\d.]+ (min|left)", r"\1", line) for line in capsys.readouterr().out.splitlines()]
    assert told == [
        "part: 1 of 2 runs, min, about left",
        "part: 2 of 2 runs, min",
        "other: 1 of 3 runs, min, about left",
        "other: 2 of 3 runs, min, about left",
        "other: 3 of 3 runs, min",
    ]


def test_a_run_that_fails_is_not_left_out():
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        progress.results("part", [pool.submit(lambda: 1), pool.submit(lambda: 1 // 0)])


def test_a_part_that_fails_costs_no_other_its_result(monkeypatch, capsys, tmp_path):
    parts = {"trace": lambda given: {"rows": []}, "warming": lambda given: 1 // 0, "chaos": lambda given: {"kinds": []}}
    monkeypatch.setattr(bench, "PARTS", parts)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    assert bench.run_all(parser) == ["warming"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gateway-chaos.json", "gateway-trace.json"]
    assert json.loads((tmp_path / "gateway-chaos.json").read_text())["command"] == "python -m gateway_bench chaos"
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_what_each_part_takes_is_said_of_every_one():
    assert list(bench.MINUTES) == list(bench.PARTS)
