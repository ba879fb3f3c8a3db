"""Which deployments and replicas exist: a small protocol, and the one for a machine without a cluster, a file."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import msgspec

from quire_api import wire
from quire_api.errors import UserError
from quire_gateway.policies import POLICIES

log = logging.getLogger(__name__)


class MalformedTable(UserError):
    """The routing table cannot be used."""


class Discovery(Protocol):
    """Yields the routing table now and whenever it changes."""

    problem: str
    """Why the last table is not the newest; empty while it is."""

    is_ready_without_replicas: bool
    """Whether a gateway that knows its table is ready though nothing has answered through it yet."""

    def tables(self) -> AsyncIterator[wire.RoutingTable]: ...


class FileDiscovery:
    """Follows a RoutingTable in JSON by its modification time.

    The file may be replaced atomically or rewritten; while it is missing or malformed the last good table stands, and
    `problem` says why.
    """

    def __init__(self, path: Path, interval_s: float = 0.2) -> None:
        self._path = path
        self._interval_s = interval_s
        self.problem = ""
        self.is_ready_without_replicas = False

    async def tables(self) -> AsyncIterator[wire.RoutingTable]:
        seen: tuple[int, int, int] | None = None
        while True:
            try:
                stat = self._path.stat()
                signature = stat.st_mtime_ns, stat.st_size, stat.st_ino
                if signature != seen:
                    table = parse_table(self._path.read_bytes())
                    seen = signature
                    self._say("")
                    yield table
            except OSError as error:
                seen = None
                self._say(f"The routing table {self._path.absolute()} cannot be read: {error.strerror}.")
            except MalformedTable as error:
                seen = signature
                self._say(f"The routing table {self._path} is malformed, so the last good one stands: {error}")
            await asyncio.sleep(self._interval_s)

    def _say(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem


def parse_table(data: bytes) -> wire.RoutingTable:
    """A routing table from JSON.

    Raises:
        MalformedTable
    """
    try:
        table = msgspec.json.decode(data, type=wire.RoutingTable)
    except msgspec.MsgspecError as error:
        raise MalformedTable(f"{error}.") from None
    for deployment in table.deployments:
        if not deployment.served_names:
            raise MalformedTable(f"deployment {deployment.name} has no served name.")
        if deployment.policy not in POLICIES:
            message = (
                f"deployment {deployment.name} asks for policy {deployment.policy!r}; known are {sorted(POLICIES)}."
            )
            raise MalformedTable(message)
    return table
