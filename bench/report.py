"""Turns bench/results/h200.jsonl into REPORT.md, with ratios inside each run, and a plot of tokens/s over the batch.

    make bench-report                                     or: python bench/report.py [RESULTS.jsonl] [--folder FOLDER]

A ratio compares two engines only where one run (one machine, in one go) measured both; it is the other engine's time
over ours, so that more than 1 means that ours is faster.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from card import w5_ms
from report_http import served

RESULTS = Path(__file__).parent / "results" / "h200.jsonl"
SERVED = "http.jsonl"
"""Beside the results: readings of the HTTP servers, one a line."""
OURS = "quire"
W5_BATCHES = (1, 8, 32, 64, 128, 256)
# Workload -> what a reader calls it, the field that is compared, its unit.
READINGS = {
    "w1": ("W1: 256 requests at once", "wall_s", "s"),
    "w1b": ("W1b: 1,024 requests at once", "wall_s", "s"),
    "w2_tpot": ("W2: time per output token, batch 1", "tpot_ms", "ms"),
    "w2_ttft": ("W2: first token of 128", "ttft_ms", "ms"),
    "w3_8192x1": ("W3: a prompt of 8,192 tokens", "wall_s", "s"),
    "w3_2048x16": ("W3: 16 prompts of 2,048 tokens", "wall_s", "s"),
    "w4_cold": ("W4: shared prefix, cold", "wall_s", "s"),
    "w4_warm_new_suffix": ("W4: shared prefix, warm", "wall_s", "s"),
    "w4_warm_identical": ("W4: the same requests again", "wall_s", "s"),
    **{f"w5_{batch}": (f"W5: a step at batch {batch}", "step_ms", "ms") for batch in W5_BATCHES},
    "long_131071x1": ("a prompt of 131,071 tokens", "wall_s", "s"),
    "long_32768x8": ("a step of 8 sequences of 32k", "step_ms", "ms"),
    "startup": ("start, until it takes requests", "wall_s", "s"),
}
MODELS = {"m-small": "Qwen3-0.6B shape", "m-8b": "Llama-3.1-8B shape"}
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reading:
    """Median of one engine's repetitions of one thing in one run. `values`: how many lie between lowest and highest;
    a line may itself be the median of several repetitions."""

    value: float
    lowest: float
    highest: float
    values: int
    repetitions: int

    def text(self) -> str:
        spread = f" [{self.lowest:.4g}..{self.highest:.4g}]" if self.values > 1 else ""
        of = "median of " if self.values == 1 < self.repetitions else ""
        return f"{self.value:.4g}{spread} ({of}{self.repetitions})"


def readings(lines: Iterable[Line]) -> dict[tuple[str, str, str], dict[str, Reading]]:
    """(run, model, key of READINGS) -> engine -> its reading."""
    values: dict[tuple[str, str, str], dict[str, list[tuple[float, int]]]] = defaultdict(lambda: defaultdict(list))
    for line in one_token(lines):
        if line["workload"] in READINGS and (field := READINGS[line["workload"]][1]) in line:
            place = line["run"], line["model"], line["workload"]
            values[place][line["engine"]].append((line[field], line.get("reps", 1)))
    return {
        place: {
            engine: Reading(
                statistics.median(value for value, _ in found),
                min(value for value, _ in found),
                max(value for value, _ in found),
                len(found),
                sum(count for _, count in found),
            )
            for engine, found in engines.items()
        }
        for place, engines in values.items()
    }


def one_token(lines: Iterable[Line]) -> Iterable[Line]:
    """The lines, and W2's two readings of each repetition where a series of it ends: the time of its first token, and
    what 255 more took it beyond the median first token."""
    series: dict[tuple[str, str, str], dict[str, list[Line]]] = defaultdict(lambda: {"w2": [], "w2_out1": []})
    for line in lines:
        yield line
        own = series[line["run"], line["model"], line["engine"]]
        if line["workload"] in own:
            own[line["workload"]].append(line)
        elif line["workload"] == "w2_summary":
            firsts = [one["wall_s"] for one in own["w2_out1"]]
            yield from ({**line, "workload": "w2_ttft", "reps": 1, "ttft_ms": 1e3 * first} for first in firsts)
            for one in own["w2"]:
                tpot_ms = (one["wall_s"] - statistics.median(firsts)) / 255e-3
                yield {**line, "workload": "w2_tpot", "reps": 1, "tpot_ms": tpot_ms}
            own["w2"], own["w2_out1"] = [], []


def report(lines: list[Line]) -> str:
    """The whole page; runs in the order in which they were measured."""
    found = readings(lines)
    page = [
        "# Readings on one GPU",
        "",
        "Written by `make bench-report` from [h200.jsonl](h200.jsonl); do not edit. bf16, greedy, dummy weights, token",
        "ids in and out. Medians, [lowest..highest], (repetitions). A ratio is the other engine's time over Quire's in",
        "the same run: above 1, Quire is faster. Without both engines in a run there is no ratio. A setting not named",
        "is the engine's default: 256 sequences and 8,192 tokens a step (Quire), 1,024 and 16,384 (vLLM).",
    ]
    for run in dict.fromkeys(line["run"] for line in lines):
        own = [line for line in lines if line["run"] == run]
        engines = sorted({line["engine"] for line in own}, key=lambda name: (name != OURS, name))
        versions = ", ".join(
            f"{engine} {next(line['version'] for line in own if line['engine'] == engine)}" for engine in engines
        )
        commits = ", ".join(sorted({line["commit"] for line in own if line["engine"] == OURS}))
        page += [
            "",
            f"## {run}",
            "",
            f"{own[0]['machine']}, {own[0]['date']}; {versions}; Quire at {commits or 'no commit'}.",
            *(line["note"] for line in own if line["engine"] == OURS and "note" in line),
        ]
        if engines == [OURS]:
            page.append("Quire alone was measured in this run, so it holds no ratio.")
        page += ["", *(f"- {engine}: {settings(own, engine)}" for engine in engines)]
        page += ["", "| model | workload | unit | " + " | ".join([*engines, "ratio"]) + " |"]
        page.append("| --- | --- | --- |" + " --- |" * (len(engines) + 1))
        for model in MODELS:
            for key, (name, _, unit) in READINGS.items():
                by_engine = found.get((run, model, key))
                if by_engine:
                    cells = [by_engine[engine].text() if engine in by_engine else "–" for engine in engines]
                    page.append(f"| {model} | {name} | {unit} | {' | '.join([*cells, ratio(by_engine)])} |")
        page += shares(own[0]["machine"], run, found)
    page += [
        "",
        *(f"{name}: {shape}." for name, shape in MODELS.items()),
        "",
        "What the card allows a step: weights at 4.45 TB/s or their products at 720 TFLOP/s, what takes longer, and",
        "keys and values at 4.27 TB/s ([card.py](../card.py)). Activations, sampling and gaps are not in it.",
        "",
        "![tokens/s over the batch](h200.png)",
        "",
    ]
    return "\n".join(page)


def settings(lines: Iterable[Line], engine: str) -> str:
    """What an engine was given in a run, each setting with all its values."""
    given: dict[str, set[Any]] = defaultdict(set)
    for line in lines:
        if line["engine"] == engine:
            for name, value in line.get("settings", {}).items():
                given[name].add(value)
    return ", ".join(f"{name} {' or '.join(map(str, sorted(given[name])))}" for name in sorted(given)) or "not recorded"


def shares(machine: str, run: str, found: dict[tuple[str, str, str], dict[str, Reading]]) -> list[str]:
    """A line a model on W5 beside what the card allows; nothing where that is not known."""
    page = []
    for model in MODELS:
        parts = []
        for batch in W5_BATCHES:
            ours, allowed = found.get((run, model, f"w5_{batch}"), {}).get(OURS), w5_ms(machine, model, batch)
            if ours and allowed:
                parts.append(f"{batch}: {allowed:.2f} ms, {allowed / ours.value:.0%}")
        if parts:
            page += ["", f"W5 of {model}, batch: what the card allows, Quire's share of it. {'; '.join(parts)}."]
    return page


def ratio(by_engine: dict[str, Reading]) -> str:
    """Of each other engine's time to ours; a dash where one of them is missing."""
    others = sorted(name for name in by_engine if name != OURS)
    if OURS not in by_engine or not others:
        return "–"
    return ", ".join(f"{by_engine[other].value / by_engine[OURS].value:.2f}x {other}" for other in others)


def curves(lines: list[Line]) -> dict[str, list[tuple[int, float]]]:
    """Of the last run that measured decode steps: "engine model" -> (batch, tokens/s), by batch."""
    steps = [line for line in lines if line["workload"].startswith("w5_") and "step_ms" in line]
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in steps:
        if line["run"] == steps[-1]["run"]:
            batch = int(line["workload"].removeprefix("w5_"))
            found[f"{line['engine']} {line['model']}"].append((batch, 1e3 * batch / line["step_ms"]))
    return {name: sorted(points) for name, points in sorted(found.items())}


def plot(lines: list[Line], target: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in curves(lines).items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="sequences that decode", ylabel="tokens/s", title="Decode, W5")
    ticks = sorted({batch for points in curves(lines).values() for batch, _ in points})
    axes.set_xticks(ticks, [str(batch) for batch in ticks])
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=120, metadata={"Software": None})


def whole_page(results: Path) -> str:
    """The report of a file of results and of what was SERVED beside it."""
    page, beside = report(_lines(results)), results.parent / SERVED
    return page + "\n" + served(_lines(beside)) if beside.exists() else page


def _lines(file: Path) -> list[Line]:
    return [named(json.loads(text)) for text in file.read_text().splitlines()]


def named(line: Line) -> Line:
    """An engine that was told to be deterministic is compared as one of its own."""
    is_deterministic = line.get("settings", {}).get("deterministic", False)
    return {**line, "engine": f"{line['engine']} deterministic"} if is_deterministic else line


def main() -> None:
    parser = argparse.ArgumentParser(description="REPORT.md and h200.png from the results.")
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--folder", type=Path, help="where they are written; default: beside the results")
    options = parser.parse_args()
    folder = options.folder or options.results.parent
    (folder / "REPORT.md").write_text(whole_page(options.results))
    plot(_lines(options.results), folder / "h200.png")


if __name__ == "__main__":
    main()
