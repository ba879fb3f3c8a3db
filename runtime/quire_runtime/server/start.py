"""What `quire serve` does before it imports the server: what can be refused is refused, and the port is taken."""

import contextlib
import errno
import os
import socket

from quire_api.errors import UserError
from quire_runtime.config import EngineConfig
from quire_runtime.engine.child import EngineChild
from quire_runtime.execute.window import require_window
from quire_runtime.model.config import ModelConfig
from quire_runtime.server.config import ServerConfig

BACKLOG = 2048


class CannotListen(UserError):
    """The address is in use or not this machine's."""


def start(engine: EngineConfig, server: ServerConfig, child: EngineChild) -> None:
    """Serve until one of `ending_signals`, then drain and return. `child`, which its owner closes, loads the model.

    The port is taken at once; /health is 200 and /ready 503 while the model loads.

    Raises:
        UserError: the address cannot be had, or the model cannot be served as configured.
        EngineDied: the engine process ended while serving; a supervisor should start this process again.
    """
    if engine.skip_tokenizer_init:
        raise UserError("quire serve needs the tokenizer. Leave --skip-tokenizer-init out.")
    if not server.served_model_name:
        server = server.model_copy(update={"served_model_name": [engine.model]})
    if os.path.isdir(engine.model):
        require_window(engine, ModelConfig.from_directory(engine.model))
    with contextlib.closing(listen(server.host, server.port)) as listener:
        from quire_runtime.server.run import serve

        serve(engine, server, listener, child)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket that does not block.

    Raises:
        CannotListen: the address is in use or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise CannotListen(
                f"port {port} of {host} is in use. Stop the program that uses it, or choose another with --port."
            ) from None
        raise CannotListen(f"cannot listen on {host} port {port}: {error.strerror}. Check --host and --port.") from None
    listener.setblocking(False)
    return listener
