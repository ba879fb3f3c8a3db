"""`quire up FILE.yaml`: from a resource file to an endpoint on this machine."""

import asyncio
import errno
import socket
from pathlib import Path

from rich.console import Console

from quire.up.commands import Programs
from quire.up.display import Display
from quire.up.gpus import Gpus, devices_of_this_machine
from quire.up.session import Options, Session
from quire.up.state import StateDir, default_state_dir
from quire.up.wish import Wish
from quire_api.errors import UserError


class PortInUse(UserError):
    """Somebody else listens on the gateway's port."""


def run_up(
    file: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    state_dir: Path | None = None,
    gateway_workers: int = 1,
    programs: Programs | None = None,
    console: Console | None = None,
) -> None:
    """Serve every LLMDeployment of `file` until Ctrl-C.

    Raises:
        UserError: the file, the port or the state folder cannot be used; nothing was started.
    """
    path = Path(file).absolute()
    wish = Wish(path)
    wish.read()
    port = _usable_port(host, port)
    state = StateDir.open(state_dir or default_state_dir(path))
    try:
        with Display(console or Console()) as display:
            for remark in wish.remarks():
                display.announce(remark)
            options = Options(path, host, port, programs or Programs(), gateway_workers)
            asyncio.run(_serve(options, wish, state, display))
    finally:
        state.close()


async def _serve(options: Options, wish: Wish, state: StateDir, display: Display) -> None:
    session = Session(options, wish, state, Gpus(devices_of_this_machine()), display)
    display.announce(f"gateway at {session.url}/v1, logs in {state.path / 'logs'}")
    await session.run()


def _usable_port(host: str, port: int) -> int:
    if not 0 <= port <= 65535:
        raise UserError(f"{port} is no port; use --port with 1 to 65535, or 0 for a free one")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError):
        raise _no_address(host) from None
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise _no_address(host) from None
            raise PortInUse(
                f"port {port} of {host} cannot be used: {error.strerror}; stop what listens there, or use --port"
            ) from None
        return int(probe.getsockname()[1])


def _no_address(host: str) -> UserError:
    return UserError(f"{host} is no address of this machine; use --host 127.0.0.1 or --host 0.0.0.0")
