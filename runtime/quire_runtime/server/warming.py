"""The engine's two ends of warming a new replica: telling of its hottest prefixes, and computing those of another."""

import asyncio
import logging
from contextlib import closing

import msgspec
import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from quire_api.blocks import FORMAT_VERSION
from quire_api.openai import InvalidRequest
from quire_api.sampling import SamplingParams
from quire_api.warming import (
    HOT_PREFIXES_PATH,
    MOST_BYTES,
    TOKEN_BYTES,
    WARM_PATH,
    WARMING_MEDIA_TYPE,
    HotPrefix,
    HotPrefixes,
    Warmed,
)
from quire_runtime.engine.errors import RequestRefused
from quire_runtime.engine.request import EngineRequest
from quire_runtime.server.auth import caller_of
from quire_runtime.server.body import read_body, unless_gone
from quire_runtime.server.errors import Forbidden
from quire_runtime.server.service import Service, service_of

log = logging.getLogger(__name__)
router = APIRouter()

MOST_PREFIXES = 256
MOST_TOKENS = 1 << 20
LONGEST_S = 600
OWN_CACHE_TOKENS = 1024
"""Prompt tokens of clients after which an engine has a cache of its own; what gateways probe with is far less."""
_LAST_IN_LINE = 1 << 20
_ONE_TOKEN = SamplingParams(max_tokens=1, temperature=0.0)


@router.get(HOT_PREFIXES_PATH)
async def hot_prefixes(request: Request) -> Response:
    service = _of_gateway(request)
    prefixes = _number(request, "prefixes", MOST_PREFIXES)
    tokens = _number(request, "tokens", MOST_TOKENS)
    client, info = service.client, service.info
    told = HotPrefixes(
        model_revision=info.model_revision,
        block_size=info.block_size,
        block_format=FORMAT_VERSION,
        prefixes=await unless_gone(request.receive, client.hot_prefixes(prefixes, tokens)),
    )
    return Response(msgspec.msgpack.encode(told), media_type=WARMING_MEDIA_TYPE)


@router.post(WARM_PATH)
async def warm(request: Request) -> Response:
    """Compute the prefixes in the body, in their order, for at most `seconds`; ends with the caller's connection."""
    service = _of_gateway(request)
    seconds = _number(request, "seconds", LONGEST_S)
    info = service.info
    body = await read_body(request, MOST_BYTES)
    try:
        hot = msgspec.msgpack.decode(body, type=HotPrefixes)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"The body is not a list of hot prefixes: {error}.") from None
    theirs = hot.model_revision, hot.block_size, hot.block_format
    ours = info.model_revision, info.block_size, FORMAT_VERSION
    if theirs != ours:
        message = (
            f"These are prefixes of (model revision, block size, block format) {theirs}; this engine's are {ours}."
        )
        raise InvalidRequest(message)
    warmed = await unless_gone(request.receive, _warm(service, hot.prefixes, seconds))
    return Response(msgspec.json.encode(warmed), media_type="application/json")


async def _warm(service: Service, prefixes: list[HotPrefix], seconds: float) -> Warmed:
    """Several gateways ask at once: the first one's prefixes are computed, the others wait for that."""
    warmed = Warmed()
    try:
        async with asyncio.timeout(seconds), service.warming:
            if service.is_warmed:
                return Warmed(skipped="warmed")
            if service.client.stats.prefix_queries_tokens >= OWN_CACHE_TOKENS:
                return Warmed(skipped="in_use")
            for number, prefix in enumerate(prefixes):
                if length := await _compute(service, prefix, f"warming-{number}"):
                    warmed.prefixes += 1
                    warmed.tokens += length
    except TimeoutError:
        warmed.is_cut = True
    service.is_warmed = service.is_warmed or warmed.prefixes > 0
    log.info("warmed with %d prefixes, %d tokens", warmed.prefixes, warmed.tokens)
    return warmed


async def _compute(service: Service, prefix: HotPrefix, request_id: str) -> int:
    """Tokens of the prefix that are cached now; 0 if this engine cannot have it.

    Clients go before it: it has the lowest priority. It is no request of theirs, in metrics neither.
    """
    client, info = service.client, service.info
    if len(prefix.token_ids) % TOKEN_BYTES:
        return 0
    ids = np.frombuffer(prefix.token_ids, "<u4")[: info.max_model_len - 1].tolist()
    ask = EngineRequest(ids, _ONE_TOKEN, request_id, _LAST_IN_LINE, prefix.cache_salt, is_warming=True)
    try:
        with closing(client.open(ask)) as steps:
            async for _ in steps:
                pass
    except RequestRefused as refused:
        log.info("a prefix of %d tokens is left out: %s", len(ids), refused)
        return 0
    return len(ids)


def _of_gateway(request: Request) -> Service:
    """
    Raises:
        Forbidden: the caller is no gateway of this deployment, or this engine cannot tell.
    """
    # Prompts in clear, of everybody: an engine without an internal key, which trusts all callers, tells them nobody.
    service = service_of(request)
    if not (service.config.internal_key and caller_of(request.scope).is_internal):
        raise Forbidden("Hot prefixes are for the deployment's gateways only. Set QUIRE_INTERNAL_KEY on both sides.")
    return service


def _number(request: Request, name: str, most: int) -> int:
    given = request.query_params.get(name, "")
    if not (given.isascii() and given.isdigit() and len(given) <= 12 and 0 < int(given) <= most):
        raise InvalidRequest(f"{name} must be a whole number from 1 to {most}.", name)
    return int(given)
