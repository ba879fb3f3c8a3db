"""The operator as a process: `python -m quire_operator`."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import kopf

from quire_api.connection import Connection
from quire_api.errors import UserError
from quire_operator.autoscaling import autoscale_for_ever
from quire_operator.config import OperatorConfig
from quire_operator.handlers import registry_of, settings_of
from quire_operator.kube import ApiError, ApiUnavailable, Kube
from quire_operator.lease import Lease
from quire_operator.metrics import IS_LEADER
from quire_operator.pages import serve_pages
from quire_operator.parts import Parts, assemble
from quire_operator.reconcile import Reconciler
from quire_operator.resync import Resync
from quire_operator.rights import Kind, watchable
from quire_operator.routing import Routing
from quire_operator.watchers import until_a_watch_ends

log = logging.getLogger(__name__)

Task = asyncio.Task[Any]
GIVE_UP_S = 5.0
"""For what is under way, the lease above all, once the operator cannot go on."""


class JsonFormatter(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{record.msecs:03.0f}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return json.dumps(said)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 after SIGTERM, 1 when the operator had to give up, 2 for what the user can correct."""
    try:
        config = OperatorConfig.from_flags(sys.argv[1:] if argv is None else argv)
        connection = Connection.find(config.kubeconfig)
    except UserError as error:
        print(f"quire-operator: {error}", file=sys.stderr)
        return 2
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
    for noisy in ("kopf.objects", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return asyncio.run(operate(config, connection))
    except UserError as error:
        print(f"quire-operator: {error}", file=sys.stderr)
        return 2


async def operate(config: OperatorConfig, connection: Connection) -> int:
    """Work until SIGTERM or SIGINT."""
    async with contextlib.AsyncExitStack() as closing:
        parts = assemble(config, connection, closing)
        stop, listening = asyncio.Event(), asyncio.Event()
        _heed_signals(stop)
        port = await serve_pages(config.host, config.port, listening.is_set, parts.reconciler.count)
        print(f"quire-operator: {parts.identity} serves /metrics on port {port}", file=sys.stderr, flush=True)
        kinds = await _watchable(parts.kube, config, stop)
        if stop.is_set():
            return 0
        watching, ours = _start(parts, config, kinds, stop, listening)
        done, _ = await asyncio.wait({watching, *ours}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            await _give_up(done, {watching, *ours})
        # kopf goes last: it cancels whatever has begun after it, and so the lease's return in its midst.
        for group in (ours, [watching]):
            for task in group:
                task.cancel()
            await asyncio.gather(*group, return_exceptions=True)
        return 0


def _start(
    parts: Parts, config: OperatorConfig, kinds: dict[str, Kind], stop: asyncio.Event, listening: asyncio.Event
) -> tuple[Task, list[Task]]:
    """kopf's task, and ours."""
    kube, store, reconciler = parts.kube, parts.store, parts.reconciler
    resync = Resync(kube, store, kinds, config.namespaces, reconciler.wake, lambda: reconciler.seen(()))
    watching = asyncio.create_task(
        kopf.operator(
            registry=registry_of(store, reconciler, resync, parts.connection, kinds),
            settings=settings_of(kinds, config.namespaces),
            clusterwide=not config.namespaces,
            namespaces=config.namespaces,
            # Else kopf asks for the user's name, and a container's user may have none.
            identity=parts.identity,  # type: ignore[arg-type]
            standalone=True,
            ready_flag=listening,
        )
    )
    works = (
        until_a_watch_ends(),
        resync.run(),
        reconciler.run(),
        parts.gateways.run(),
        parts.agents.run(),
        parts.routing.run(),
        autoscale_for_ever(kube, store, parts.gateways, reconciler.is_leading, parts.identity, reconciler.wake),
        _lead(parts.lease, reconciler, parts.routing, config),
        _told_to_end(stop, listening),
    )
    return watching, [asyncio.create_task(work) for work in works]


async def _give_up(done: set[Task], tasks: set[Task]) -> NoReturn:
    """End the process with exit code 1, once what is under way has had its time."""
    for task in done:
        log.error("the operator ends", exc_info=None if task.cancelled() else task.exception())
    for task in tasks:
        task.cancel()
    # kopf may ignore being cancelled then, and the process would stay, doing nothing.
    await asyncio.wait(tasks, timeout=GIVE_UP_S)
    logging.shutdown()
    os._exit(1)


def _heed_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def _told_to_end(stop: asyncio.Event, listening: asyncio.Event) -> None:
    """Return once we are. kopf takes the signals to itself while it starts, and would first wait for our tasks."""
    await listening.wait()
    _heed_signals(stop)
    await stop.wait()


async def _watchable(kube: Kube, config: OperatorConfig, stop: asyncio.Event) -> dict[str, Kind]:
    """What may be watched, as soon as the API server says so; nothing once we are told to stop.

    Raises:
        MissingRight
    """
    while not stop.is_set():
        try:
            return await watchable(kube, config.namespaces)
        except ApiUnavailable as error:
            log.warning("the API server does not answer: %s", error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await stop.wait()
    return {}


async def _lead(lease: Lease, reconciler: Reconciler, routing: Routing, config: OperatorConfig) -> None:
    """Let the reconciler work while the lease is ours."""
    holding = asyncio.create_task(lease.run()) if config.leader_elect else None
    IS_LEADER.set(holding is None)
    try:
        while True:
            if holding is not None and holding.done():
                holding.result()  # it ends by an error alone, and nobody else would hear of it
            lease.changed.clear()
            if (holding is None or lease.is_held()) and not reconciler.is_leading.is_set():
                try:
                    await routing.load()
                except (ApiError, ApiUnavailable) as error:
                    log.warning("the routing table cannot be read: %s", error)
                    await asyncio.sleep(1.0)
                    continue
                reconciler.lead()
            elif holding is not None and not lease.is_held():
                reconciler.is_leading.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await lease.changed.wait()
    finally:
        if holding is not None:
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)
