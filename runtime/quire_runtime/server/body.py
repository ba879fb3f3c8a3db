"""The body of a request, read no further than allowed, and the client's hang-up noticed."""

import asyncio
import contextlib
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.types import Receive

from quire_api.body_limits import TOO_MANY_VALUES, holds_too_much
from quire_api.openai import InvalidRequest
from quire_runtime.server.errors import BodyTooLarge, ClientGone

T = TypeVar("T")


async def read_json(request: Request, limit: int) -> Any:
    """
    Raises:
        BodyTooLarge: more than `limit` bytes were announced or came.
        InvalidRequest: the bytes are not JSON in UTF-8.
        ClientGone
    """
    return parse_json(await read_body(request, limit))


async def read_body(request: Request, limit: int) -> bytes:
    """
    Raises:
        BodyTooLarge: more than `limit` bytes were announced or came.
        ClientGone
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit)
    pieces: list[bytes] = []
    size = 0
    is_complete = False
    while not is_complete:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        pieces.append(piece)
        is_complete = not message.get("more_body", False)
    return b"".join(pieces)


def parse_json(data: bytes) -> Any:
    """Like orjson, but NaN and Infinity pass, so that the field that holds one can be named.

    Raises:
        InvalidRequest
    """
    if not data:
        raise InvalidRequest("The body is empty. Send a JSON object.", code="invalid_json")
    if holds_too_much(data):
        raise InvalidRequest(TOO_MANY_VALUES, code="too_many_values")
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        if b"NaN" in data or b"Infinity" in data:
            with contextlib.suppress(ValueError, RecursionError):
                parsed = json.loads(data)
                json.dumps(parsed, ensure_ascii=False).encode()  # fails on half of a surrogate pair
                return parsed
        raise InvalidRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up.

    Raises:
        ClientGone
    """
    running = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(hang_up(receive))
    try:
        await asyncio.wait((running, watch), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            return running.result()
        raise ClientGone
    finally:
        watch.cancel()
        if not running.done():
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def hang_up(receive: Receive) -> None:
    """Return once the client is gone (or the answer complete)."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is longer than {limit} bytes. Send less, or raise --max-body-bytes.")
