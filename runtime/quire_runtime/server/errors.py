"""Every error as an OpenAI error object with the right HTTP status."""

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from quire_api.errors import UserError
from quire_api.openai import InvalidRequest
from quire_api.openai_responses import error_object
from quire_api.sampling import InvalidSampling
from quire_api.wire import HEADER_REQUEST_ID
from quire_runtime.engine.errors import EngineClosed, EngineDied, RequestRefused
from quire_runtime.server.ids import request_id_of
from quire_text.errors import ChatTemplateError, TextTooLong

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1
CLIENT_CLOSED_REQUEST = 499
STOPPED = "This server was stopped before the answer was whole. Send the request again."


class NotReady(UserError):
    """The server cannot take the request now: it loads, drains, or its engine is gone."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class ModelNotFound(UserError):
    """No model is served under the name."""


class BodyTooLarge(UserError):
    """The body is longer than the server takes."""


class Unauthorized(UserError):
    """The key is missing or wrong."""


class Forbidden(UserError):
    """The internal key is missing or wrong."""


class ClientGone(Exception):
    """The client hung up; nobody reads an answer."""


class RequestFailed(Exception):
    """The engine ended this one request with an error."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as the client sees it."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        return error_object(self.message, self.kind, self.param, self.code)


def describe(error: Exception) -> Failure:
    """Status and error object of any exception that a handler can raise."""
    message = str(error)
    match error:
        case InvalidRequest():
            return Failure(400, message, param=error.param, code=error.code)
        case InvalidSampling():
            return Failure(400, message, param=error.param, code="invalid_value")
        case ChatTemplateError():
            return Failure(400, message, param="messages", code="invalid_value")
        case TextTooLong():
            return Failure(400, message, code="context_length_exceeded")
        case RequestRefused(code="queue_full"):
            return Failure(429, message, "rate_limit_error", code=error.code)
        case RequestRefused(code="draining"):
            return Failure(503, message, "service_unavailable_error", code=error.code)
        case RequestRefused():
            return Failure(400, message, code=error.code)
        case NotReady():
            return Failure(503, message, "service_unavailable_error", code=error.code)
        case ModelNotFound():
            return Failure(404, message, param="model", code="model_not_found")
        case BodyTooLarge():
            return Failure(413, message, code="body_too_large")
        case Unauthorized():
            return Failure(401, message, "authentication_error", code="invalid_api_key")
        case Forbidden():
            return Failure(403, message, "permission_error", code="invalid_internal_key")
        case EngineClosed():
            return Failure(503, STOPPED, "service_unavailable_error", code="draining")
        case EngineDied():
            return Failure(503, message, "service_unavailable_error", code="engine_dead")
        case RequestFailed():
            return Failure(500, message, "server_error", code="request_failed")
        case UserError():
            return Failure(400, message)
        case HTTPException():
            return _http(error)
        case _:
            return Failure(
                500, "Something failed inside the server; its log says what.", "server_error", code="internal"
            )


def respond(error: Exception) -> Response:
    failure = describe(error)
    headers = dict(getattr(error, "headers", None) or {})
    if failure.status in (429, 503):
        headers["retry-after"] = str(RETRY_AFTER_S)
    if failure.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(failure.body), failure.status, headers, "application/json")


def install(app: FastAPI) -> None:
    """Have every error of the app's handlers answered by `respond`."""
    for kind in (UserError, EngineDied, RequestFailed, HTTPException):
        app.add_exception_handler(kind, _handle)
    app.add_exception_handler(Exception, _crashed)
    app.add_exception_handler(ClientGone, _nobody_reads)


async def _handle(request: Request, error: Exception) -> Response:
    return respond(error)


async def _crashed(request: Request, error: Exception) -> Response:
    """Answers outside of all middleware, so that it sets the request's id itself."""
    response = respond(error)
    response.headers[HEADER_REQUEST_ID] = request_id_of(request.scope)
    return response


async def _nobody_reads(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _http(error: HTTPException) -> Failure:
    match error.status_code:
        case 404:
            return Failure(404, "There is nothing at this path. The API starts at /v1.", code="unknown_url")
        case 405:
            return Failure(405, "This path does not take this method.", code="method_not_allowed")
        case status:
            return Failure(status, str(error.detail) or HTTPStatus(status).phrase)
