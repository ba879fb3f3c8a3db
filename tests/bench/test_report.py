"""The page of GPU readings: ratios inside a run only."""

import importlib.util
from pathlib import Path

BENCH = Path(__file__).parents[2] / "bench"
spec = importlib.util.spec_from_file_location("report", BENCH / "report.py")
report = importlib.util.module_from_spec(spec)
spec.loader.exec_module(report)


def line(engine: str, run: str, wall_s: float, workload: str = "w1", **more: object) -> dict:
    return {
        "engine": engine, "version": "1", "model": "m-8b", "run": run, "machine": "GPU", "date": "2026-01-01",
        "commit": "abc", "workload": workload, "rep": 0, "wall_s": wall_s, **more,
    }  # fmt: skip


def test_a_ratio_is_the_others_median_over_ours():
    lines = [line("quire", "a", wall) for wall in (9.0, 10.0, 30.0)] + [line("vllm", "a", 12.0)]
    assert "| 10 [9..30] (3) | 12 (1) | 1.20x vllm |" in report.report(lines)


def test_engines_of_different_runs_are_never_compared():
    page = report.report([line("quire", "a", 10.0), line("vllm", "b", 12.0)])
    assert "x vllm" not in page
    assert "Quire alone was measured in this run, so it holds no ratio." in page


def test_a_deterministic_engine_is_compared_as_one_of_its_own():
    lines = [line("quire", "a", 10.0), line("quire", "a", 10.8, settings={"deterministic": True})]
    assert "| 10 (1) | 10.8 (1) | 1.08x quire deterministic |" in report.report([report.named(one) for one in lines])


def test_step_times_become_tokens_a_second_of_the_last_run():
    lines = [
        line("quire", "a", 1.0, "w5_8", step_ms=1.0),
        line("quire", "b", 1.0, "w5_8", step_ms=4.0),
        line("quire", "b", 1.0, "w5_1", step_ms=2.0),
    ]
    assert report.curves(lines) == {"quire m-8b": [(1, 500.0), (8, 2000.0)]}


def test_the_committed_page_is_what_the_results_say():
    assert (BENCH / "results" / "REPORT.md").read_text() == report.whole_page(report.RESULTS)


def test_the_plot_is_an_image(tmp_path):
    report.plot([line("quire", "a", 1.0, "w5_8", step_ms=1.0)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_server_is_shown_with_its_cpu_for_each_token():
    spread = {"p50": 10.0, "p99": 30.0}
    loaded = line(
        "quire", "a", 2.0, step="w1", output_tok_s=1000.0, tokens_per_event=1.0, ttft_ms=spread, itl_ms=spread
    )
    loaded["server_cpu_s"] = {"front end": 0.05, "engine": 1.0}
    assert "| quire 1 | W1 | 2 | 1.00 | 10 / 30 | 10 / 30 | 25 |" in report.served([loaded])
