"""The page of GPU readings: ratios inside a run only."""

from pathlib import Path

import report
import report_http

BENCH = Path(report.__file__).parent


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


def one_token(run: str, walls: list[float], firsts: list[float]) -> list[dict]:
    """The lines of one series of W2 as bench/gpu.py writes them."""
    summary = {"reps": len(walls), "tpot_ms": 0.0, "ttft_ms": 0.0}
    return [
        *(line("quire", run, wall, "w2") for wall in walls),
        *(line("quire", run, wall, "w2_out1") for wall in firsts),
        line("quire", run, 0.0, "w2_summary", **summary),
    ]


def test_one_token_is_shown_with_the_spread_of_its_repetitions():
    lines = one_token("a", [0.264, 0.266, 0.292], [0.010, 0.011, 0.012])
    page = report.report([*lines, *one_token("a", [0.520], [0.010])])
    assert "W2: first token of 128 | ms | 10.5 [10..12] (4) |" in page
    # Beyond the first series' median first token of 11 ms: 253, 255 and 281 ms for 255 tokens; of the second's 510 ms.
    assert "W2: time per output token, batch 1 | ms | 1.051 [0.9922..2] (4) |" in page


def test_a_median_that_the_engine_took_is_not_shown_as_a_spread():
    page = report.report([line("quire", "a", 1.0, "w5_8", step_ms=5.0, reps=3)])
    assert "| 5 (median of 3) |" in page


def test_settings_of_each_engine_stand_with_the_run():
    lines = [
        line("quire", "a", 9.0, settings={"max_model_len": 4096, "max_num_seqs": 1024}),
        line("quire", "a", 9.0, "w3_8192x1", settings={"max_model_len": 16384, "max_num_seqs": 1024}),
        line("vllm", "a", 9.0),
    ]
    page = report.report(lines)
    assert "- quire: max_model_len 4096 or 16384, max_num_seqs 1024\n" in page
    assert "- vllm: not recorded\n" in page


def test_a_step_stands_beside_what_its_card_allows():
    """M-8B at 32: 15.009 GB of weights at 4.45 TB/s, 32 * 576 keys of 131,072 bytes at 4.27 TB/s: 3.373 + 0.566 ms."""
    step = line("quire", "a", 1.0, "w5_32", step_ms=5.0) | {"machine": "NVIDIA H200, x86_64 x 16"}
    assert "Quire's share of it. 32: 3.94 ms, 79%.\n" in report.report([step])
    assert "share" not in report.report([line("quire", "a", 1.0, "w5_32", step_ms=5.0)])


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


def asked(engine: str, run: str, wall_s: float, ttft_ms: float, step: str = "w1", flags: str = "") -> dict:
    spread = {"p50": ttft_ms, "p99": 3 * ttft_ms}
    found = line(
        engine, run, wall_s, step=step, output_tok_s=1000.0, tokens_per_event=1.0, ttft_ms=spread, itl_ms=spread
    )
    found["server_cpu_s"] = {"front end": 0.05, "engine": 1.0}
    found["arrivals"] = "all at once" if step == "w1" else "poisson 11/s for 30 s, ramp 5 s"
    found["command"] = f"{engine} serve m {report_http.SAME_FOR_ALL}{flags}"
    return found


def test_a_server_is_shown_with_its_cpu_for_each_token():
    page = report_http.served([asked("quire", "a", 2.0, 10.0)])
    assert "| quire 1 | W1 | 2 | 1.00 | 10 / 30 | 10 / 30 | 25 |" in page
    assert "Ratios" not in page


def test_a_server_is_compared_with_the_best_front_end_of_its_run():
    lines = [
        *(asked("quire", "a", wall, 10.0) for wall in (1.0, 2.0, 9.0)),
        asked("quire", "a", 4.0, 20.0, flags=" --more"),
        asked("quire", "a", 30.0, 10.0, step="poisson"),
        asked("vllm", "a", 3.0, 15.0),
        asked("vllm", "a", 5.0, 12.0, flags=" (other)"),
        asked("vllm", "a", 30.0, 5.0, step="poisson"),
        asked("vllm", "b", 0.1, 0.1),
    ]
    page = report_http.served(lines)
    assert "| a | m-8b | W1 | quire 1 | 2 | 1.50x | 1.20x | 1.20x | 1.20x |" in page
    assert "| a | m-8b | W1 | quire 1 --more | 2 | 0.75x | 0.60x | 0.60x | 0.60x |" in page
    assert "| a | m-8b | Poisson 11/s | quire 1 | 1 | – | 0.50x | 0.50x | 0.50x |" in page
    assert "vllm 1 (other) | W1 |" in page
    assert "Default front ends" not in page
