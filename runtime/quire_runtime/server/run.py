"""The HTTP server of `quire serve` and its engine process, from the first probe to the last token."""

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
import uvloop
from fastapi import FastAPI

from quire_api.errors import UserError
from quire_runtime.config import EngineConfig
from quire_runtime.engine.child import EngineChild
from quire_runtime.engine.client import AsyncEngineClient
from quire_runtime.engine.messages import EngineLoading
from quire_runtime.engine.source import model_directory
from quire_runtime.server.app import create_app
from quire_runtime.server.auth import OPEN_PATHS
from quire_runtime.server.config import ServerConfig
from quire_runtime.server.drain import StopSignal, drain
from quire_runtime.server.protocol import Http
from quire_runtime.server.service import Service
from quire_runtime.server.uptime import process_age_s
from quire_text.bundle import TokenizerBundle
from quire_text.chat import check_template
from quire_text.errors import ChatTemplateError
from quire_text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
LAST_WORDS_S = 5
"""How long answers that were broken off may take to say so."""


def serve(engine: EngineConfig, server: ServerConfig, listener: socket.socket, child: EngineChild) -> None:
    """What server.start.start says, with the port and the process that it has begun with."""
    uvloop.run(_serve(engine, server, listener, child))


class NoProbes(logging.Filter):
    """Keeps probes and scrapes out of the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        arguments = record.args
        path = str(arguments[2]) if isinstance(arguments, tuple) and len(arguments) > 2 else ""
        return path.partition("?")[0] not in OPEN_PATHS


class HttpServer(uvicorn.Server):
    """Leaves signals to us, so that a first SIGTERM drains instead of closing the door."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(engine: EngineConfig, config: ServerConfig, listener: socket.socket, child: EngineChild) -> None:
    app = create_app(None, None, config)
    service: Service = app.state.service
    stop = StopSignal()
    http = HttpServer(_http_config(app, config))
    logging.getLogger("uvicorn.access").addFilter(NoProbes())
    answering = asyncio.create_task(http.serve(sockets=[listener]), name="http")
    address, port = listener.getsockname()[:2]
    log.info("listening on %s port %d", address, port)
    clients: list[AsyncEngineClient] = []
    working = asyncio.create_task(_run_engine(engine, child, service, clients), name="engine")
    stopping = asyncio.create_task(stop.asked.wait(), name="stop")
    try:
        await asyncio.wait((answering, working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        elif service.state == "ready":
            await drain(service, stop)
    except Exception as error:
        service.failure = str(error)
        raise
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
        for client in clients:
            await client.close()
        http.should_exit = True
        await answering
        if app.state.tracing is not None:
            await asyncio.to_thread(app.state.tracing.close)
    if not clients:
        # Told to end while the model is fetched: threads of a download cannot be stopped, and a return waits for them.
        child.close()
        logging.shutdown()
        os._exit(0)


def _http_config(app: FastAPI, config: ServerConfig) -> uvicorn.Config:
    """
    Raises:
        UserError: the certificate or its key cannot be used.
    """
    loaded = uvicorn.Config(
        app,
        loop="none",
        http=Http,
        ws="none",
        lifespan="off",
        log_level=config.uvicorn_log_level,
        access_log=not config.disable_access_log,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=LAST_WORDS_S,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        server_header=False,
    )
    try:
        loaded.load()
    except OSError as error:
        raise UserError(
            f"The certificate {config.ssl_certfile} or its key cannot be used ({error.strerror or error}). "
            "Check --ssl-certfile and --ssl-keyfile."
        ) from None
    return loaded


async def _run_engine(
    config: EngineConfig, child: EngineChild, service: Service, clients: list[AsyncEngineClient]
) -> None:
    """Have the engine load its model, attach it, and watch it until it dies.

    Raises:
        UserError, EngineDied
    """
    service.loading = lambda: "fetch"
    directory = await asyncio.to_thread(model_directory, config)
    client = AsyncEngineClient(config.model_copy(update={"model": str(directory), "revision": None}), child)
    clients.append(client)
    service.loading = lambda: _doing(client.loading)
    tokenizer_directory = Path(config.tokenizer) if config.tokenizer else directory
    tokenizer = await asyncio.to_thread(load_tokenizer, tokenizer_directory, service.config.chat_template)
    gc.collect()
    gc.freeze()
    info = await client.ready()
    service.attach(client, tokenizer, model_defaults=config.generation_config == "auto")
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in info.startup_s.items() if name != "total")
    names = ", ".join(service.served_names)
    log.info("ready after %.1f s (%s): %s", process_age_s(), phases, names)
    first = asyncio.create_task(_tell_first_token(client), name="first-token")
    try:
        raise await client.died()
    finally:
        first.cancel()


async def _tell_first_token(client: AsyncEngineClient) -> None:
    took_s = await client.first_token()
    log.info("first token %.1f s after the start, %.2f s after its request", process_age_s(), took_s)


def _doing(said: EngineLoading | None) -> str:
    if said is None:
        return "import"
    return said.phase if said.percent is None else f"{said.phase}, {said.percent} %"


def load_tokenizer(directory: Path, chat_template: str | None) -> Tokenizer:
    """The tokenizer of a model's directory, with the chat template given as text or as a file's path, or its own.

    Raises:
        MalformedTokenizer
        ChatTemplateError: `chat_template` does not compile; a model's own is only complained of, as it has other uses.
        UserError: the chat template's file cannot be read.
    """
    bundle = TokenizerBundle.from_directory(directory)
    if chat_template is not None:
        template = _read_template(chat_template)
        check_template(template)
        return Tokenizer.from_bundle(bundle.with_chat_template(template))
    tokenizer = Tokenizer.from_bundle(bundle)
    try:
        check_template(tokenizer.named_templates.get("default", ""))
    except ChatTemplateError as error:
        log.warning("%s Until then chats are refused.", error)
    return tokenizer


def _read_template(given: str) -> str:
    if "{" in given or "\n" in given:
        return given
    try:
        return Path(given).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"The chat template {os.fspath(given)!r} cannot be read: {why}.") from error
