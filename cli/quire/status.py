"""`quire status`: how the deployments of a cluster or of the latest `quire up` stand."""

import json
from typing import Literal

import yaml
from pydantic import ValidationError
from rich.console import Console

from quire.cluster.choice import Where
from quire.cluster.status import print_status
from quire.up.display import age, plain_table, status_table
from quire.up.state import NoState, read_status
from quire_api.v1alpha1 import LLMDeployment, from_object

HERE = Where()
WIDTH_OF_A_FILE = 400
"""Columns where no terminal sets a limit."""

Output = Literal["table", "json", "yaml"]


def run_status(
    where: Where = HERE,
    *,
    name: str = "",
    output: Output = "table",
    is_verbose: bool = False,
    console: Console | None = None,
) -> int:
    """Print it, of all or of the one named; returns 0 if every deployment is Ready, else 1.

    Raises:
        NoState: nothing has been started, or its status cannot be read.
        NoCluster, ClusterUnreachable, ClusterRefused
    """
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDTH_OF_A_FILE
    api = where.cluster()
    if api is not None:
        return print_status(api, where.namespace_of(api), name, output, is_verbose, console)
    document, is_alive = read_status(where.state_dir)
    try:
        deployments = [from_object(item) for item in document["items"]]
    except (ValidationError, KeyError, TypeError):
        raise NoState("the status was written by another version of Quire; start `quire up` again") from None
    if name:
        known = [deployment.metadata.name for deployment in deployments]
        if name not in known:
            raise NoState(f"`quire up` serves no {name}; it has: {', '.join(known)}")
        deployments = [deployment for deployment in deployments if deployment.metadata.name == name]
        document["items"] = [item for item in document["items"] if item["metadata"]["name"] == name]
    if output == "table":
        _print_tables(console, deployments, is_alive, str(document.get("quire", {}).get("file", "")))
    else:
        text = json.dumps(document, indent=2) if output == "json" else yaml.safe_dump(document, sort_keys=False)
        console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)
    return 0 if is_alive and deployments and all(_is_ready(deployment) for deployment in deployments) else 1


def _print_tables(console: Console, deployments: list[LLMDeployment], is_alive: bool, file: str) -> None:
    if not is_alive:
        console.print(f"`quire up` is not running; start it with: quire up {file}", markup=False, highlight=False)
        return
    console.print(status_table(deployments))
    for deployment in deployments:
        console.print()
        table = plain_table("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE", wraps="MESSAGE", header_style="dim")
        for condition in deployment.status.conditions:
            since = age(condition.last_transition_time)
            table.add_row(condition.type, condition.status, condition.reason, since, condition.message)
        console.print(f"{deployment.metadata.namespace}/{deployment.metadata.name}", markup=False, highlight=False)
        console.print(table)


def _is_ready(deployment: LLMDeployment) -> bool:
    ready = deployment.status.condition("Ready")
    return ready is not None and ready.status == "True"
