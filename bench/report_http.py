"""The part of REPORT.md about HTTP servers: each reading, and ratios to the best front end of the other engine."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

Line = dict[str, Any]
OURS = "quire"
SAME_FOR_ALL = "--gpu-memory-utilization 0.85"
"""Ends the part of a server's command that every row shares; what follows is shown."""
# What is compared: name, where a line holds it, and the loads for which it says something.
COMPARED = (
    ("whole", ("wall_s",), ("W1",)),
    ("TTFT p50", ("ttft_ms", "p50"), ("W1", "Poisson")),
    ("TTFT p99", ("ttft_ms", "p99"), ("W1", "Poisson")),
    ("ITL p99", ("itl_ms", "p99"), ("W1", "Poisson")),
)


def served(lines: list[Line]) -> str:
    """Each line one repetition, in the order in which they were measured; then ratios inside runs."""
    page = [
        "## HTTP servers",
        "",
        "From [http.jsonl](http.jsonl), which [served.py](../served.py) writes; until run 2026-11-26-h200-4 an older",
        "program that asked in the same way did. A row a repetition; a run is of one machine, the clients too. A",
        "front end that is not the default one, and flags beyond those that all rows share, stand with the server.",
        "W1 is streamed to 256 clients at once; Poisson arrivals last 30 s. TTFT and ITL in ms, p50 / p99; CPU of the",
        "front end in us a token.",
        "",
        "| run | model | server | load | s | tokens per event | TTFT | ITL | CPU |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in lines:
        where = f"| {line['run']} | {line['model']} | {server(line)} "
        if line["step"] == "startup":
            bytecode = {None: "", True: ", bytecode", False: ", no bytecode"}[line.get("bytecode")]
            load = f"start to first token, kernel cache {line['kernel_cache']}{bytecode}"
            page.append(f"{where}| {load} | {line['first_token_s']:.4g} | | | | |")
            continue
        ttft, itl = (f"{line[name]['p50']:.4g} / {line[name]['p99']:.4g}" for name in ("ttft_ms", "itl_ms"))
        tokens = line["output_tok_s"] * line["wall_s"]
        cpu_us = line["server_cpu_s"]["front end"] / tokens * 1e6
        page.append(
            f"{where}| {load_of(line)} | {line['wall_s']:.4g} | {line['tokens_per_event']:.2f} "
            f"| {ttft} | {itl} | {cpu_us:.0f} |"
        )
    return "\n".join([*page, "", *ratios(lines), ""])


def ratios(lines: list[Line]) -> list[str]:
    """A row for each of our servers and loads in runs that hold another engine's; nothing without one."""
    found: dict[tuple[str, str, str], dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["step"] != "startup":
            found[line["run"], line["model"], load_of(line)][server(line)].append(line)
    rows = []
    for (run, model, load), servers in found.items():
        others = [each for each in servers.values() if each[0]["engine"] != OURS]
        for name, ours in servers.items():
            if ours[0]["engine"] == OURS and others:
                cells = [
                    f"{min(_median(each, path) for each in others) / _median(ours, path):.2f}x"
                    if load.split()[0] in loads
                    else "–"
                    for _, path, loads in COMPARED
                ]
                rows.append(f"| {run} | {model} | {load} | {name} | {len(others)} | {' | '.join(cells)} |")
    if not rows:
        return []
    return [
        "Ratios inside a run: the other engine's median over Quire's, for each reading of its best front end there.",
        "Above 1, Quire is faster.",
        "",
        f"| run | model | load | server | front ends beside it | {' | '.join(name for name, _, _ in COMPARED)} |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(COMPARED),
        *rows,
    ]


def server(line: Line) -> str:
    """Engine and version, flags of its own, and variables that its command began with."""
    command = line.get("command", "")
    given = [word for word in command.partition(" serve ")[0].split() if "=" in word]
    variables = f" ({' '.join(given)})" if given else ""
    return f"{line['engine']} {line['version']}{command.partition(SAME_FOR_ALL)[2]}{variables}"


def load_of(line: Line) -> str:
    return "W1" if line["step"] == "w1" else line["arrivals"].split(" for ")[0].capitalize()


def _median(lines: Iterable[Line], path: tuple[str, ...]) -> float:
    return statistics.median(_at(line, path) for line in lines)


def _at(line: Line, path: tuple[str, ...]) -> float:
    found: Any = line
    for name in path:
        found = found[name]
    return float(found)
