"""The gateway as a process."""

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence

import uvloop

from quire_api.errors import UserError
from quire_gateway.config import GatewayConfig
from quire_gateway.gateway import Gateway


def run(config: GatewayConfig) -> int:
    """Serve until SIGTERM or SIGINT, then drain. Exit code: 0 after a drain, 2 for what the user can correct."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        uvloop.run(_serve(config))
    except UserError as error:
        print(f"quire-gateway: {error}", file=sys.stderr)
        return 2
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m quire_gateway --routing-table FILE ...`"""
    try:
        config = GatewayConfig.from_flags(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"quire-gateway: {error}", file=sys.stderr)
        return 2
    return run(config)


class CannotListen(UserError):
    """The address is in use or not ours."""


async def _serve(config: GatewayConfig) -> None:
    gateway = Gateway(config)
    try:
        await gateway.start()
    except OSError as error:
        reason = error.strerror or error
        flag = "--tls-port" if gateway.port else "--port"
        port = config.tls_port if gateway.port else config.port
        message = f"cannot listen on {config.host}:{port}: {reason}. Choose another {flag}, or free it."
        raise CannotListen(message) from None
    tls = f" and with TLS on port {gateway.tls_port}" if gateway.tls_port else ""
    print(f"quire-gateway: listening on {gateway.url}{tls}", file=sys.stderr, flush=True)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    await stop.wait()
    drain = asyncio.ensure_future(gateway.drain())
    # A second signal means: at once.
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, drain.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await drain
    await gateway.close()
