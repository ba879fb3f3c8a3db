"""`quire doctor`: what is wrong with an installation, each finding with a code that stays and a next step."""

import json
from dataclasses import asdict
from typing import Literal

from rich.console import Console
from rich.text import Text

from quire.cluster.choice import Where
from quire.doctor.checks import examine
from quire.doctor.findings import TITLES, Finding, Level
from quire.doctor.local import look_local
from quire.doctor.look import look_cluster

Output = Literal["text", "json"]
MARKS = {Level.OK: ("ok", "green"), Level.WARNING: ("warning", "yellow"), Level.ERROR: ("error", "red")}
SKIPPED = ("skipped", "dim")


def run_doctor(
    where: Where,
    *,
    system: str = "quire-system",
    output: Output = "text",
    is_strict: bool = False,
    console: Console | None = None,
) -> int:
    """Print every finding; 0 if none is an error (with `is_strict`: nor a warning), else 1.

    Raises:
        NoState, NoCluster, ClusterUnreachable: there is nothing to examine.
    """
    console = console or Console()
    api = where.cluster()
    if api is None:
        findings = look_local(where.state_dir)
    else:
        findings = examine(look_cluster(api, system, where.namespace))
    levels = {finding.level for finding in findings}
    is_bad = Level.ERROR in levels or (is_strict and Level.WARNING in levels)
    if output == "json":
        document = {"ok": not is_bad, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(document, indent=2))
    else:
        for finding in findings:
            _print(finding, console)
        counts = [sum(finding.level is level for finding in findings) for level in (Level.ERROR, Level.WARNING)]
        told = [f"{n} {kind}{'' if n == 1 else 's'}" for n, kind in zip(counts, ("error", "warning"), strict=True)]
        console.print(f"\n{', '.join(told)}", markup=False, highlight=False)
    return 1 if is_bad else 0


def _print(finding: Finding, console: Console) -> None:
    word, style = MARKS.get(finding.level, SKIPPED)
    line = Text.assemble(f"{finding.code} ", (f"{word:<8}", style), f" {TITLES[finding.code]}")
    if finding.subject:
        line.append(f" {finding.subject}")
    line.append(f": {finding.message}")
    console.print(line, soft_wrap=True, highlight=False)
    if finding.fix:
        console.print(Text(f"               {finding.fix}"), soft_wrap=True, highlight=False)
