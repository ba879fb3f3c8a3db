"""The URL table."""

from enum import Enum, auto
from urllib.parse import unquote_to_bytes

from quire_gateway.errors import Refusal


class Route(Enum):
    """What a request asks for."""

    GENERATE = auto()
    """Needs a model, is routed by its prompt."""
    FORWARD = auto()
    """Needs a model, any replica will do."""
    MODELS = auto()
    MODEL = auto()
    HEALTH = auto()
    READY = auto()
    METRICS = auto()
    VERSION = auto()
    OPENAPI = auto()
    REPLICAS = auto()
    LOAD = auto()
    PEERS = auto()
    EXPLAIN = auto()


_READ = frozenset({"GET", "HEAD"})
_WRITE = frozenset({"POST"})
_MODEL_PREFIX = "/v1/models/"

_TABLE: dict[str, tuple[frozenset[str], Route]] = {
    "/v1/chat/completions": (_WRITE, Route.GENERATE),
    "/v1/completions": (_WRITE, Route.GENERATE),
    "/tokenize": (_WRITE, Route.FORWARD),
    "/detokenize": (_WRITE, Route.FORWARD),
    "/v1/models": (_READ, Route.MODELS),
    "/health": (_READ, Route.HEALTH),
    "/ready": (_READ, Route.READY),
    "/metrics": (_READ, Route.METRICS),
    "/version": (_READ, Route.VERSION),
    "/openapi.json": (_READ, Route.OPENAPI),
    "/internal/v1/replicas": (_READ, Route.REPLICAS),
    "/internal/v1/load": (_READ, Route.LOAD),
    "/internal/v1/peers": (frozenset({"GET"}), Route.PEERS),
    "/debug/route": (_READ | _WRITE, Route.EXPLAIN),
}


def find_route(method: str, path: str) -> Route:
    """
    Raises:
        Refusal: 404 for an unknown path, 405 for a known one asked in another way.
    """
    found = _TABLE.get(path)
    if found is None and path.startswith(_MODEL_PREFIX):
        found = _READ, Route.MODEL
    if found is None:
        raise Refusal(404, "unknown_url", f"There is no {path} here. The API starts at /v1.")
    methods, route = found
    if method not in methods:
        raise Refusal(405, "method_not_allowed", f"{path} takes {' or '.join(sorted(methods))}, not {method}.")
    return route


def model_of(path: str) -> str:
    """The model that a path under /v1/models names; clients write its slashes as they are, or as %2F."""
    return unquote_to_bytes(path.removeprefix(_MODEL_PREFIX).encode("latin-1")).decode(errors="replace")
