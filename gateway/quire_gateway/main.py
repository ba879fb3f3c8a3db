"""The gateway as a process, or as several."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence

import uvloop

from quire_api.errors import UserError
from quire_api.signals import ending_signals
from quire_gateway.config import GatewayConfig
from quire_gateway.gateway import Gateway, check
from quire_gateway.heartbeat import keep_beating
from quire_gateway.workers import Supervisor, Worker, cannot_listen


def run(config: GatewayConfig) -> int:
    """Serve until one of `ending_signals`, then drain. Exit code: 0 after a drain, 2 for what the user can correct."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        if config.workers == 1:
            uvloop.run(_serve(config))
            return 0
        check(config)
        supervisor = Supervisor(config, lambda worker: _work(config, worker))
    except UserError as error:
        print(f"quire-gateway: {error}", file=sys.stderr)
        return 2
    _announce(config, supervisor.port, supervisor.tls_port)
    return supervisor.run()


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m quire_gateway --routing-table FILE ...`"""
    try:
        config = GatewayConfig.from_flags(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"quire-gateway: {error}", file=sys.stderr)
        return 2
    return run(config)


def _work(config: GatewayConfig, worker: Worker) -> int:
    try:
        uvloop.run(_serve(config, worker))
    except UserError as error:
        print(f"quire-gateway: {error}", file=sys.stderr)
        return 2
    return 0


def _announce(config: GatewayConfig, port: int, tls_port: int) -> None:
    host = f"[{config.host}]" if ":" in config.host else config.host
    tls = f" and with TLS on port {tls_port}" if tls_port else ""
    print(f"quire-gateway: listening on http://{host}:{port}{tls}", file=sys.stderr, flush=True)


async def _serve(config: GatewayConfig, worker: Worker | None = None) -> None:
    beating = None if worker is None else asyncio.create_task(keep_beating(worker.beats, worker.number))
    gateway = Gateway(config, worker=worker)
    try:
        await gateway.start()
    except OSError as error:
        flag, port = ("--tls-port", config.tls_port) if gateway.port else ("--port", config.port)
        raise cannot_listen(config.host, port, flag, error) from None
    # What lives until the end is not looked at by each collection.
    gc.collect()
    gc.freeze()
    if worker is None:
        _announce(config, gateway.port, gateway.tls_port)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # What reaches the whole group of a terminal is passed on to workers by their supervisor, once.
    signals = ending_signals() if worker is None else (signal.SIGTERM,)
    for each in signals:
        loop.add_signal_handler(each, stop.set)
    if worker is not None:
        # Workers of a supervisor that was killed would hold its port against the next one.
        loop.add_reader(worker.leash, os._exit, 1)
    await stop.wait()
    drain = asyncio.ensure_future(gateway.drain())
    # A second signal means: at once.
    for each in signals:
        loop.add_signal_handler(each, drain.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await drain
    await gateway.close()
    if beating is not None:
        beating.cancel()
