"""Refusals: what the gateway answers by itself, as OpenAI error objects."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from quire_api.errors import UserError
from quire_api.openai_responses import unknown_model

JSON = b"application/json"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "service_unavailable_error",
}


class Refusal(UserError):
    """A request that no replica will see (or whose replica failed), with all that its answer needs.

    `code` is the machine-readable reason; it labels the metrics too. `retry_after_s` sets the Retry-After header.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        extra_headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.extra_headers = extra_headers

    def body(self) -> bytes:
        """The OpenAI error object as JSON."""
        return orjson.dumps(error_object(self.status, self.code, self.message, self.param))

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the answer beside the content type."""
        headers = list(self.extra_headers)
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(self.retry_after_s).encode()))
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        return headers


def no_model(asked: str, served: Sequence[str]) -> Refusal:
    """404. served: the names that the asker may know."""
    return Refusal(404, "model_not_found", unknown_model(asked, served), param="model")


def error_object(status: int, code: str, message: str, param: str | None = None) -> Mapping[str, Any]:
    """`{"error": {...}}` as OpenAI's API writes it."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_event(code: str, message: str) -> bytes:
    """A server-sent event that tells a client in mid-stream that its answer ends here."""
    return b"data: " + orjson.dumps(error_object(502, code, message)) + b"\n\n"
