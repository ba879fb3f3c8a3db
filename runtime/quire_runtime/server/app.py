"""The HTTP application of one pod: routes, errors, keys and request ids put together."""

from fastapi import FastAPI

from quire_api.tracing import make_tracing
from quire_runtime.server import chat, completions, errors, kv_events, status, tokenize, warming
from quire_runtime.server.auth import Auth
from quire_runtime.server.client import EngineClient
from quire_runtime.server.config import ServerConfig
from quire_runtime.server.ids import RequestIds
from quire_runtime.server.service import Service
from quire_runtime.server.tracing import Traces
from quire_text.tokenizer import Tokenizer


def create_app(client: EngineClient | None, tokenizer: Tokenizer | None, config: ServerConfig) -> FastAPI:
    """An application that serves `config.served_model_name`.

    Without client or tokenizer it answers probes and refuses the rest until `app.state.service.attach` is called.
    """
    app = FastAPI(title="Quire", openapi_url=None, root_path=config.root_path)
    service = Service(config)
    if client is not None and tokenizer is not None:
        service.attach(client, tokenizer)
    app.state.service = service
    for room in (chat, completions, tokenize, status, kv_events, warming):
        app.include_router(room.router)
    errors.install(app)
    app.add_middleware(Auth, api_keys=config.api_key, internal_key=config.internal_key)
    if (tracing := make_tracing(config.otlp_traces_endpoint, "quire-engine")) is not None:
        app.add_middleware(Traces, tracing=tracing)
    app.state.tracing = tracing
    app.add_middleware(RequestIds)
    return app
