"""The address of a server, as people write it."""

import ipaddress
from urllib.parse import urlsplit

from quire_api.errors import UserError


class BadAddress(UserError):
    """It names no server."""


def base_address(url: str) -> str:
    """`url` without /v1 and the last slash.

    Raises:
        BadAddress: it is not http(s)://HOST, or its port is none.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        is_whole = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole or any(character.isspace() for character in url):
        raise BadAddress(f"{url!r} is no address; write it as http://HOST:PORT")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether `url` is of this machine, which no proxy of the environment can reach for us."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
