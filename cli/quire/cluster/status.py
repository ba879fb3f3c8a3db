"""`quire status` of a cluster: what `kubectl get llmd` shows, and the conditions behind it."""

import json
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quire.cluster.api import Api, Manifest, deployments_path
from quire.up.display import COLUMNS, STYLE, age, plain_table


def print_status(api: Api, namespace: str, name: str, output: str, is_verbose: bool, console: Console) -> int:
    """Print it; 0 if every deployment is Ready, else 1.

    Objects are read as they are, so that one which no version understands is shown too.

    Raises:
        ClusterUnreachable, ClusterRefused
    """
    path = deployments_path(namespace, name)
    items = [api.get(path)] if name else api.items(path)
    if output != "table":
        document = items[0] if name else {"apiVersion": "v1", "kind": "List", "items": items}
        text = json.dumps(document, indent=2) if output == "json" else yaml.safe_dump(document, sort_keys=False)
        console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)
    elif not items:
        where = f"namespace {namespace} of {api.connection.server}" if namespace else api.connection.server
        hint = "; -A looks in all namespaces" if namespace else ""
        console.print(f"no LLMDeployments in {where}{hint}", markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(_table(items, has_namespace=not namespace))
        for item in items:
            if is_verbose or not is_ready(item):
                _print_conditions(item, console)
    return 0 if items and all(is_ready(item) for item in items) else 1


def is_ready(item: Manifest) -> bool:
    return condition(item, "Ready").get("status") == "True"


def condition(item: Manifest, kind: str) -> dict[str, Any]:
    """The condition of that type; empty if there is none."""
    conditions = (item.get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if entry.get("type") == kind), {})


def _table(items: Sequence[Manifest], *, has_namespace: bool) -> Table:
    table = plain_table(*(("NAMESPACE",) if has_namespace else ()), *COLUMNS)
    for item in items:
        metadata, status, ready = item["metadata"], item.get("status") or {}, condition(item, "Ready")
        word = str(ready.get("status", "Unknown"))
        table.add_row(
            *([metadata["namespace"]] if has_namespace else []),
            metadata["name"],
            str((item.get("spec") or {}).get("model", {}).get("source", "")),
            Text(word, STYLE.get(word, "")),
            str(status.get("replicas", 0)),
            str(ready.get("reason", "")),
            str(status.get("url", "")),
            age(metadata.get("creationTimestamp")),
        )
    return table


def _print_conditions(item: Manifest, console: Console) -> None:
    metadata, status = item["metadata"], item.get("status") or {}
    conditions = status.get("conditions") or []
    console.print()
    console.print(f"{metadata['namespace']}/{metadata['name']}", markup=False, highlight=False)
    if not conditions:
        console.print("  no operator has looked at it yet; see `quire doctor`", markup=False, highlight=False)
        return
    if status.get("observedGeneration", 0) < metadata.get("generation", 0):
        console.print("  the operator has not seen the latest edit yet", markup=False, highlight=False)
    table = plain_table("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE", wraps="MESSAGE", header_style="dim")
    for entry in conditions:
        since = age(entry.get("lastTransitionTime"))
        table.add_row(entry["type"], entry["status"], entry.get("reason", ""), since, entry.get("message", ""))
    console.print(table)
