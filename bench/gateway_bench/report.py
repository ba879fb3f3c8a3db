"""bench/results/gateway.md and its plots, from what the parts have measured."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from gateway_bench.step_cost import RESULTS

PAGE = RESULTS / "gateway.md"
OURS, FALLBACK = "prefixCost", "prefixCost-fallback"
LOSS = 0.03
COMPARED = {"ttft_mean_s": True, "ttft_p90_s": True, "tpot_mean_ms": True, "output_tok_s": False, "hit_rate": False}
"""By name in a run: whether less is better."""
GUESSED = (
    "Both guess what a replica keeps by what they have sent there. This is one set of requests and was not traced; "
    "means over other sets, below, differ by 1 to 4 % for no reason but chance where nothing waits."
)
EXPLAINED = {
    "ladder-37": "ladder-37, 4 and 8/s: one prompt is sent away, and llm-d and we find all but 12 to 21 tokens of one; "
    "who shares a step with whom differs, and over other seeds so does who is ahead. Consistent hashing has the lower "
    "TPOT, as its bound of 1.25 x mean holds at any count: its replicas are evenly full, and for it 35 and 14 % "
    "of all prompt tokens are computed again, at eight and three times the TTFT. 24/s, beyond saturation: llm-d "
    "as at 73 % (seed 9: 18 or 19 groups on each replica, ours 16 to 23). Least-load and round robin keep each "
    "prefix three times, so that about 100 sequences run where 256 could, and 270 wait: each that runs is "
    "quicker, and TTFT five times as long.",
    "ladder-73": "ladder-73, 8/s: seed 7 alone; over the other seeds below there is no difference. 24/s, beyond "
    "saturation, is no chance: neither llm-d nor we send a prompt away or keep a prefix twice, so that where its first "
    "prompt went decides for good where a group queues. llm-d counts the KV cache in use, to which a prefix adds once, "
    "and spreads the groups more evenly (seed 8: 18 to 21 on a replica, ours 16 to 20, as we count requests): 110 "
    "requests wait at one replica and 3 at another. To make waiting requests dearer is no way out, for every "
    "group of the busy replica leaves it then: 1,024 tokens for each cost a tenth, 4,096 three times the TTFT. "
    "Least-load, round robin and consistent hashing find less cached and keep prefixes twice; fewer of their "
    "requests run side by side, each of those is quicker, and the others wait for half a minute to more than two.",
    "hot": "hot: all requests are alike; no choice by load is more even than taking turns.",
}
"""What was found behind the losses, by workload; shown only where there is one."""
Rows = list[dict[str, Any]]


def path_of(part: str) -> Path:
    return RESULTS / f"gateway-{part}.json"


def save(part: str, result: dict[str, Any]) -> None:
    """One part's result, from which `write` makes the page."""
    path_of(part).write_text(json.dumps(result, indent=1) + "\n")


def write() -> None:
    """The page of all parts that have a result."""
    sections = [
        "# The gateway, measured and simulated",
        "",
        "Written by `make bench-gateway`; each part's command is stated.",
        "",
    ]
    for part, section in (
        ("quality", _quality),
        ("trace", _trace),
        ("scaling", _scaling),
        ("warming", _warming),
        ("decision", _decision),
        ("convergence", _convergence),
        ("overhead", _overhead),
        ("chaos", _chaos),
    ):
        if path_of(part).exists():
            result = json.loads(path_of(part).read_text())
            sections += [*section(result), f"`{result['command']}`; {result['machine']}.", ""]
    PAGE.write_text("\n".join(sections))


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [_line(heads), _line(["---"] * len(heads)), *map(_line, rows), ""]


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _ratio(one: float, other: float) -> float:
    if not other:
        return 1.0 if not one else float("inf")
    return one / other


@dataclass(frozen=True, slots=True)
class Loss:
    """One number of one load in which `policy` is ahead of ours by more than `LOSS`; gap: by what share."""

    workload: str
    load: float
    ours: str
    policy: str
    field: str
    theirs: float
    own: float
    gap: float

    def __str__(self) -> str:
        ahead = f"{self.policy} {self.field} {self.theirs:g}, {self.ours} {self.own:g} ({self.gap:+.0%})"
        return f"{self.workload} at {self.load:g}/s: {ahead}"


def losses(runs: Rows, ours: str = OURS) -> list[Loss]:
    """Where a rival is ahead of `ours`, with events or without, by more than `LOSS`."""
    found = []
    points = sorted({(run["workload"], run["load"]) for run in runs})
    for workload, load in points:
        here = {run["policy"]: run for run in runs if (run["workload"], run["load"]) == (workload, load)}
        if ours not in here:
            continue
        for policy, run in here.items():
            for field, is_less_better in COMPARED.items():
                theirs, own = run[field], here[ours][field]
                gap = _ratio(own, theirs) - 1 if is_less_better else _ratio(theirs, own) - 1
                if gap > LOSS and policy not in (OURS, FALLBACK):
                    found.append(Loss(workload, load, ours, policy, field, theirs, own, gap))
    return found


def points_behind(most: float = float("inf")) -> list[tuple[str, float, str]]:
    """(workload, load, policy) of what is ahead of ours by more than `LOSS` and at most `most`."""
    lost = losses(json.loads(path_of("quality").read_text())["runs"])
    return list(dict.fromkeys((loss.workload, loss.load, loss.policy) for loss in lost if loss.gap <= most))


def _quality(result: dict[str, Any]) -> list[str]:
    runs: Rows = result["runs"]
    lines = ["## Routing", "", *result["notes"], ""]
    for workload, title in result["workloads"].items():
        here = [run for run in runs if run["workload"] == workload]
        _plot_quality(workload, title, here)
        lines += [f"### {title}", "", f"![{title}](gateway-{workload}.png)", ""]
        lines += _table(
            ["requests/s", "policy", "TTFT mean s", "p90 s", "TPOT ms", "output tok/s", "hit rate", "busiest / mean"],
            [
                (
                    f"{run['load']:g}",
                    run["policy"],
                    run["ttft_mean_s"],
                    run["ttft_p90_s"],
                    run["tpot_mean_ms"],
                    run["output_tok_s"],
                    run["hit_rate"],
                    run["spread"],
                )
                for run in here
            ],
        )
    lost = losses(runs)
    lines += [f"### Where {OURS} is behind by more than {LOSS:.0%}", ""]
    lines += [f"- {each}" for each in lost] or ["Nowhere."]
    why = [
        EXPLAINED.get(name, f"{name}: not looked into yet")
        for name in result["workloads"]
        if any(each.workload == name for each in lost)
    ]
    lines += ["", *(["Why:", ""] if why else []), *[f"- {each}" for each in why], ""]
    lost_too = {(each.workload, each.load, each.policy, each.field) for each in lost}
    alone = [
        each for each in losses(runs, FALLBACK) if (each.workload, each.load, each.policy, each.field) not in lost_too
    ]
    return [
        *lines,
        f"### Where {FALLBACK} is, and {OURS} is not",
        "",
        *([f"- {each}" for each in alone] or ["Nowhere."]),
        "",
        GUESSED,
        "",
    ]


def _trace(result: dict[str, Any]) -> list[str]:
    heads = {
        "workload": "workload",
        "load": "requests/s",
        "policy": "policy",
        "ttft_ms": "TTFT ms",
        "admission_ms": "until admitted",
        "prefill_ms": "from then on",
        "away_tokens": "uncached: elsewhere",
        "gone_tokens": "nowhere",
        "sent_away": "sent away",
        "sent_away_from": "from in-flight",
        "sent_away_to": "to",
        "in_flight_most": "in flight: most",
        "in_flight_least": "least",
        "waiting_most": "waiting: most",
        "waiting_least": "least",
        "copies": "copies",
        "preemptions": "preemptions",
    }
    rows = [[f"{row[name]:g}" if name == "load" else row[name] for name in heads] for row in result["rows"]]
    lines = ["### What these choices cost", "", *result["notes"], "", *_table(list(heads.values()), rows)]
    gaps = [
        [
            row["workload"],
            f"{row['load']:g}",
            row["policy"],
            row["field"],
            row["seeds"],
            f"{row['mean']:+.1%}",
            f"{row['twice_error']:.1%}",
        ]
        for row in result["gaps"]
    ]
    heads_of_gaps = ["workload", "requests/s", "policy", "what", "seeds", f"{OURS} above it by", "+-"]
    return [*lines, *result["gap_notes"], "", *_table(heads_of_gaps, gaps)]


def _plot_quality(workload: str, title: str, runs: Rows) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
    for policy in dict.fromkeys(run["policy"] for run in runs):
        mine = [run for run in runs if run["policy"] == policy]
        loads = [run["load"] for run in mine]
        for axis, field in zip(axes, ("ttft_p90_s", "output_tok_s", "hit_rate"), strict=True):
            axis.plot(loads, [run[field] for run in mine], marker="o", markersize=3, label=policy)
    axes[0].set_yscale("log")
    for axis, name in zip(axes, ("TTFT p90, s", "output tokens/s", "hit rate"), strict=True):
        axis.set(title=name, xlabel="requests/s (first turns)")
        axis.grid(alpha=0.3)
    axes[2].legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(RESULTS / f"gateway-{workload}.png", dpi=90)
    plt.close(figure)


def _scaling(result: dict[str, Any]) -> list[str]:
    outcomes: Rows = result["outcomes"]
    lines = ["## Autoscaling", "", *result["notes"], ""]
    for shape in dict.fromkeys(each["shape"] for each in outcomes):
        here = [each for each in outcomes if each["shape"] == shape]
        figure, axis = plt.subplots(figsize=(8, 3))
        for each in here:
            if not each["law"].startswith("fixed"):
                times = [10 * number / 60 for number in range(len(each["replicas"]))]
                axis.step(times, each["replicas"], label=each["law"], where="post")
        axis.set(xlabel="minutes", ylabel="replicas wanted", title=shape)
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
        figure.tight_layout()
        figure.savefig(RESULTS / f"gateway-scaling-{shape}.png", dpi=90)
        plt.close(figure)
        lines += [f"### {shape}", "", f"![{shape}](gateway-scaling-{shape}.png)", ""]
        lines += _table(
            ["law", "within both targets", "TTFT p50 s", "p90 s", "p99 s", "replica-hours", "most", "changes"],
            [
                (
                    each["law"],
                    f"{each['slo']:.1%}",
                    each["ttft_p50_s"],
                    each["ttft_p90_s"],
                    each["ttft_p99_s"],
                    each["replica_hours"],
                    each["most_replicas"],
                    each["changes"],
                )
                for each in here
            ],
        )
    return lines


def _warming(result: dict[str, Any]) -> list[str]:
    lines = ["## A new replica, cold and warmed", "", *result["notes"], ""]
    lines += _table(
        [
            "workload",
            "requests/s",
            "the new one is",
            "kept back s",
            "prefixes",
            "tokens",
            "its requests",
            "its hit rate",
            "its TTFT mean s",
            "p90 s",
            "all: hit rate",
            "TTFT mean s",
            "p90 s",
        ],
        [
            [
                row["workload"],
                f"{row['load']:g}",
                "warmed" if row["is_warmed"] else "cold",
                row["warming_s"],
                row["prefixes"],
                row["tokens"],
                row["new_requests"],
                row["new_hit_rate"],
                row["new_ttft_mean_s"],
                row["new_ttft_p90_s"],
                row["hit_rate"],
                row["ttft_mean_s"],
                row["ttft_p90_s"],
            ]
            for row in result["rows"]
        ],
    )
    lines += ["## Scale-down: who leaves", "", *result["leaving_notes"], ""]
    return lines + _table(
        ["workload", "requests/s", "who leaves", "had saved", "requests", "hit rate", "TTFT mean s", "p90 s"],
        [
            [
                row["workload"],
                f"{row['load']:g}",
                row["left"],
                f"{row['left_saved']:.1%}",
                row["requests"],
                row["hit_rate"],
                row["ttft_mean_s"],
                row["ttft_p90_s"],
            ]
            for row in result["leaving"]
        ],
    )


def _decision(result: dict[str, Any]) -> list[str]:
    rows = [
        (name.removesuffix("_us"), told["p50"], told["p99"]) for name, told in result.items() if name.endswith("_us")
    ]
    size = (
        f"{result['replicas']} replicas x {result['blocks_each']:,} blocks, {result['prompt_tokens']:,}-token prompts"
    )
    return [
        "## Decision speed",
        "",
        f"{size}; CPU time of the deciding thread.",
        "",
        *_table(["what", "p50 us", "p99 us"], rows),
        f"The index: {result['bytes_per_entry']} bytes for each block of a replica "
        f"({result['index_entries']:,} of them, {result['index_distinct_blocks']:,} distinct), "
        f"{result.get('bytes_per_guessed_entry', 'not measured')} where replicas tell nothing. A full collection of "
        f"Python's garbage collector beside it: {result['full_collection_ms']} ms.",
        "",
    ]


def _convergence(result: dict[str, Any]) -> list[str]:
    rows = [(row["what"], row["p50_ms"], row["most_ms"]) for row in result["rows"]]
    lines = ["## Several gateways: how soon they know of one another", "", *result["notes"], ""]
    return lines + _table(["what", "p50 ms", "most ms"], rows)


def _overhead(result: dict[str, Any]) -> list[str]:
    lines = ["## Overhead over real HTTP", "", *result["notes"], ""]
    lines += _table(
        [
            "server",
            "what",
            "count",
            "CPU us each",
            "per CPU-second",
            "p50 ms",
            "p99 ms",
            "added p50 ms",
            "added p99 ms",
        ],
        [
            [
                row.get(name, "")
                for name in (
                    "server",
                    "what",
                    "count",
                    "cpu_us",
                    "per_cpu_s",
                    "p50_ms",
                    "p99_ms",
                    "added_p50_ms",
                    "added_p99_ms",
                )
            ]
            for row in result["rows"]
        ],
    )
    lines += _table(["server", "memory MB"], list(result["memory_mb"].items()))
    return [*lines, *[f"- {each}" for each in result["ratios"]], ""]


def _chaos(result: dict[str, Any]) -> list[str]:
    lines = ["## Chaos", "", *result["notes"], ""]
    columns = {
        "kind": "kind",
        "strikes": "strikes",
        "requests": "requests",
        "failed": "failed",
        "refused": "of them before a byte",
        "broken": "in mid-stream",
        "cut": "connection lost",
        "unanswered": "of these before an answer began",
        "orphaned": "were at a killed gateway",
    }
    # Older results do not count all of them.
    names = [name for name in columns if name in result["kinds"][0]]
    lines += _table([columns[name] for name in names], [[row[name] for name in names] for row in result["kinds"]])
    lines += _table(["what", "before", "after"], result["leaks"])
    if "memory_mb" in result:
        lines += [
            "The gateways' memory at the end of each kind, those that were killed or drained last begun anew:",
            "",
        ]
        lines += _table(["kind", "MB", "MB"], [[kind, *each] for kind, each in result["memory_mb"]])
    return lines
