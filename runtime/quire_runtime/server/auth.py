"""Who may ask: API keys for clients, the internal key for the gateway."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest

from starlette.types import ASGIApp, Receive, Scope, Send

from quire_api.wire import HEADER_INTERNAL_KEY
from quire_runtime.server.errors import Forbidden, Unauthorized, respond

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/version", "/openapi.json"})
INTERNAL_PREFIX = "/internal/"
_CALLER = "quire.caller"


@dataclass(frozen=True, slots=True)
class Caller:
    """is_internal: internal headers are honoured. key_digest: SHA-256 of the API key, empty without one."""

    is_internal: bool
    key_digest: bytes = b""


def caller_of(scope: Scope) -> Caller:
    caller: Caller = scope[_CALLER]
    return caller


class Auth:
    """ASGI middleware: once any key is set, all but probes and metrics need one.

    Keys are kept and compared as SHA-256 digests, in a time that does not depend on which key or how much of it fits.
    Without any key everybody may do everything, internal headers included.
    """

    def __init__(self, app: ASGIApp, api_keys: Sequence[str], internal_key: str) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in api_keys]
        self._internal = _digest(internal_key.encode()) if internal_key else None
        self._root_caller = Caller(is_internal=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        verdict = self._judge(scope)
        if isinstance(verdict, Exception):
            await respond(verdict)(scope, receive, send)
            return
        scope[_CALLER] = verdict
        await self._app(scope, receive, send)

    def _judge(self, scope: Scope) -> Caller | Exception:
        path: str = scope["path"]
        if not self._digests and self._internal is None:
            return self._root_caller
        headers = dict(scope["headers"])
        if self._internal is not None:
            given = headers.get(HEADER_INTERNAL_KEY.encode())
            if given is not None and compare_digest(_digest(given), self._internal):
                return self._root_caller
            if path.startswith(INTERNAL_PREFIX):
                return Forbidden(f"This path needs the deployment's internal key in the header {HEADER_INTERNAL_KEY}.")
        if path in OPEN_PATHS:
            return Caller(is_internal=False)
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        digest = _digest(token.strip())
        fits = [compare_digest(digest, known) for known in self._digests]
        if scheme.lower() != b"bearer" or not any(fits):
            return Unauthorized("The API key is missing or wrong. Send it as `Authorization: Bearer KEY`.")
        return Caller(is_internal=False, key_digest=digest)


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()
