"""One HTTP request as the client sent it, and what of it may travel on."""

import random
import re
from dataclasses import dataclass
from hashlib import blake2b

from quire_api import wire

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, in the order of arrival."""

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
_REWRITTEN = frozenset({b"host", b"content-length", b"expect", b"x-request-id"})
_INTERNAL_PREFIX = b"x-quire-"
_SESSION = wire.HEADER_SESSION.encode()
_SANE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class Request:
    """A complete request: its body has been read and is within the limit."""

    method: str
    path: str
    headers: Headers
    body: bytes
    peer: str
    arrived_at: float
    """Seconds on the loop's clock when the last byte was there."""
    query: bytes = b""
    """What follows the path's question mark, as sent."""

    def header(self, name: bytes) -> bytes | None:
        """The first value of `name` (lower case)."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def bearer_token(self) -> str:
        """The key of `Authorization: Bearer KEY`; empty without one."""
        scheme, _, token = (self.header(b"authorization") or b"").partition(b" ")
        return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""

    def request_id(self) -> str:
        """The client's x-request-id where it is printable and short, a new one otherwise."""
        given = self.header(b"x-request-id")
        if given is not None and _SANE_ID.fullmatch(given):
            return given.decode("ascii")
        return new_request_id()


def new_request_id() -> str:
    """Unique, not secret: no need of the system's randomness, whose every asking is a system call."""
    return f"req-{random.getrandbits(128):032x}"


def end_to_end(headers: Headers) -> Headers:
    """`headers` without those that concern one connection only (RFC 9110, 7.6.1)."""
    named = _HOP_BY_HOP
    for name, value in headers:
        if name == b"connection":
            named = named | {token.strip().lower() for token in value.split(b",")}
    return [(name, value) for name, value in headers if name not in named]


def session_of(request: Request) -> bytes:
    """The client's name for a conversation, as a digest; empty where it gives none."""
    given = request.header(_SESSION)
    return blake2b(given, digest_size=16).digest() if given else b""


def forwardable(headers: Headers, keep_authorization: bool) -> Headers:
    """What of a client's headers an engine may see: nothing internal, nothing that frames the message."""
    return [
        (name, value)
        for name, value in end_to_end(headers)
        if name not in _REWRITTEN
        and not name.startswith(_INTERNAL_PREFIX)
        and (keep_authorization or name != b"authorization")
    ]
