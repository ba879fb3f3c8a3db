"""What `quire up` shows: a live table on a terminal, one line for each change elsewhere."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from quire_api.v1alpha1 import LLMDeployment
from quire_operator.world import Phase, ReplicaState

COLUMNS = ("NAME", "MODEL", "READY", "REPLICAS", "REASON", "URL", "AGE")
STYLE = {"True": "green", "False": "yellow", "Unknown": "dim"}


class Display:
    """Says what happens and how things stand."""

    def __init__(self, console: Console) -> None:
        self.has_shown = False
        self._console = console
        self._shown: tuple[Sequence[LLMDeployment], Sequence[ReplicaState]] = ((), ())
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=2)
        self._is_live = console.is_terminal
        self._said: dict[str, tuple[str, ...]] = {}

    def __enter__(self) -> "Display":
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            with self._outliving_terminal():
                self._live.stop()

    def announce(self, event: str) -> None:
        """One line with the time."""
        stamp = time.strftime("%H:%M:%S")
        with self._outliving_terminal():
            self._console.print(Text(f"{stamp} {event}"), soft_wrap=True, highlight=False)

    @contextlib.contextmanager
    def _outliving_terminal(self) -> Iterator[None]:
        """What is said once the terminal is gone goes nowhere: there is a drain to be seen to an end."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._console.file.fileno())
            os.close(nowhere)

    def show(self, deployments: Sequence[LLMDeployment], replicas: Sequence[ReplicaState]) -> None:
        """How everything stands now."""
        self.has_shown = True
        self._shown = (deployments, replicas)
        if self._is_live:
            return
        for deployment in deployments:
            ready = deployment.status.condition("Ready")
            if ready is None:
                continue
            name, status = deployment.metadata.name, deployment.status
            now = (ready.status, ready.reason, ready.message, str(status.ready_replicas))
            if self._said.get(name) != now:
                self._said[name] = now
                counts = f"{status.ready_replicas}/{deployment.spec.replicas}"
                self.announce(f"{name} Ready={ready.status} {ready.reason} {counts}: {ready.message}")

    def _picture(self) -> Group:
        deployments, replicas = self._shown
        return Group(status_table(deployments), replica_table(replicas))


def plain_table(*columns: str, wraps: str = "", header_style: str = "") -> Table:
    """A table as kubectl prints them; only the column `wraps` may take several lines."""
    table = Table(box=None, pad_edge=False, header_style=header_style)
    for column in columns:
        table.add_column(column, no_wrap=column != wraps, overflow="fold")
    return table


def status_table(deployments: Sequence[LLMDeployment]) -> Table:
    """The columns of `kubectl get llmd`."""
    table = plain_table(*COLUMNS)
    for deployment in deployments:
        ready = deployment.status.condition("Ready")
        table.add_row(
            deployment.metadata.name,
            deployment.spec.model.source,
            Text(ready.status if ready else "Unknown", STYLE[ready.status if ready else "Unknown"]),
            str(deployment.status.replicas),
            ready.reason if ready else "",
            deployment.status.url,
            age(deployment.metadata.creation_timestamp),
        )
    return table


def replica_table(replicas: Sequence[ReplicaState]) -> Table:
    """One line for each process."""
    table = plain_table("REPLICA", "STATE", "IN FLIGHT", "LAST END", wraps="LAST END", header_style="dim")
    for replica in sorted(replicas, key=lambda replica: replica.id):
        failure = "" if replica.failure is None or replica.is_available else replica.failure.message
        in_flight = "" if replica.in_flight is None else str(replica.in_flight)
        table.add_row(replica.id, state_of(replica), in_flight, failure)
    return table


def state_of(replica: ReplicaState) -> str:
    """Phase and marks in one word."""
    if replica.is_draining and replica.phase is Phase.READY:
        return "draining"
    if replica.phase is Phase.READY:
        return "serving" if replica.is_routable else "ready"
    return "crashed" if replica.phase is Phase.EXITED else str(replica.phase)


def age(created: str | None) -> str:
    """Time since `created` (RFC 3339) as kubectl writes it: 42s, 3m, 5h, 2d."""
    if created is None:
        return ""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    except (ValueError, TypeError):
        return ""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length or (unit == "d" and seconds >= length):
            return f"{int(seconds // length)}{unit}"
    return f"{max(int(seconds), 0)}s"
