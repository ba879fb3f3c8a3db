"""GET /internal/v1/kv-events: the engine's prefix cache as a stream, for the deployment's own gateways only."""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from quire_api.kv_events import KV_EVENTS_MEDIA_TYPE, KV_EVENTS_PATH
from quire_runtime.server.auth import caller_of
from quire_runtime.server.errors import Forbidden
from quire_runtime.server.service import service_of

router = APIRouter()


@router.get(KV_EVENTS_PATH)
async def kv_events(request: Request) -> Response:
    """docs/kv-events.md says what comes."""
    # Where there are API keys but no internal key, a client's key opens other paths; this one tells of all prompts.
    if not caller_of(request.scope).is_internal:
        raise Forbidden("KV events go to the deployment's gateways only. Set QUIRE_INTERNAL_KEY on both sides.")
    return StreamingResponse(service_of(request).client.kv_events(), media_type=KV_EVENTS_MEDIA_TYPE)
