"""What the server says of itself: models, health, readiness, version, metrics, and what gateways need to know."""

import msgspec
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from quire_api import openapi
from quire_api.openai_responses import ModelCard, ModelList
from quire_api.version import __version__
from quire_runtime.server.errors import NotReady, respond
from quire_runtime.server.metrics import registry
from quire_runtime.server.service import Service, service_of

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> Response:
    return _json(ModelList(_cards(service_of(request))))


@router.get("/v1/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    service = service_of(request)
    known = service.model_name(name)
    return _json(next(card for card in _cards(service) if card.id == known))


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while the process is of use: loading, serving or draining. 503 once its engine is dead or hung."""
    service = service_of(request)
    if service.state == "dead":
        return respond(NotReady(service.failure or "The engine has died.", "engine_dead"))
    if service.is_hung:
        return respond(NotReady("The engine's loop has not spoken for too long.", "engine_hung"))
    return _json({"status": service.state})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 when a request would be taken."""
    service = service_of(request)
    _ = service.client
    if service.is_hung:
        raise NotReady("The engine's loop has not spoken for too long.", "engine_hung")
    return _json({"status": "ready"})


@router.get("/version")
async def tell_version() -> Response:
    return _json({"version": __version__})


@router.get("/openapi.json")
async def tell_api() -> Response:
    return _json(openapi.document())


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    exposition = service_of(request).scrape()
    return Response(generate_latest(registry(exposition)), headers={"content-type": CONTENT_TYPE_LATEST})


@router.get("/internal/v1/model")
async def model_info(request: Request) -> Response:
    return _json(service_of(request).model_info())


@router.get("/internal/v1/tokenizer")
async def tokenizer(request: Request) -> Response:
    """The tokenizer's files, packed; the ETag is their digest."""
    bundle = service_of(request).tokenizer.bundle
    etag = f'"{bundle.digest}"'
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers={"etag": etag})
    return Response(bundle.pack(), headers={"etag": etag}, media_type="application/vnd.msgpack")


def _cards(service: Service) -> list[ModelCard]:
    window = service.info.max_model_len if service.state == "ready" else None
    first = service.served_names[0]
    return [
        ModelCard(id=name, created=service.created, root=first, max_model_len=window) for name in service.served_names
    ]


def _json(answer: object) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
