"""What the gateway answers out of its own knowledge: models, health, metrics, replicas."""

import time
from collections.abc import Callable
from typing import Any

import msgspec
import orjson

from quire_api import wire
from quire_api.version import __version__
from quire_gateway.admission import holds_key
from quire_gateway.errors import JSON, Refusal, no_model
from quire_gateway.fleet import DeploymentState, Fleet
from quire_gateway.follow import Follower
from quire_gateway.metrics import Metrics
from quire_gateway.request import Request
from quire_gateway.routes import Route, model_of
from quire_gateway.siblings import Siblings

Page = tuple[int, bytes, bytes]
"""Status, content type, body."""

_PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"


class Pages:
    """Answers that touch no replica."""

    def __init__(
        self, fleet: Fleet, follower: Follower, metrics: Metrics, internal_key: str, is_draining: Callable[[], bool]
    ) -> None:
        self._fleet = fleet
        self._follower = follower
        self._metrics = metrics
        self._internal_key = internal_key
        self._is_draining = is_draining
        self._started_at = int(time.time())

    def answer(self, route: Route, request: Request) -> Page:
        """
        Raises:
            Refusal: the page needs a key, or names a model that is not there.
        """
        match route:
            case Route.MODELS:
                return _json(self._models(request.bearer_token()))
            case Route.MODEL:
                return _json(self._model(model_of(request.path), request.bearer_token()))
            case Route.READY:
                return self._ready()
            case Route.METRICS:
                return 200, _PROMETHEUS, self._metrics.render(self._fleet, bool(self._follower.problem))
            case Route.VERSION:
                return _json({"version": __version__, "wire": wire.WIRE_VERSION})
            case Route.OPENAPI:
                # Only here, because pydantic, which it needs, is half of what a start would have to import.
                from quire_api import openapi

                return _json(openapi.document())
            case Route.REPLICAS:
                self.check_internal(request)
                return 200, JSON, msgspec.json.encode(self._fleet.report())
            case Route.LOAD:
                self.check_internal(request)
                return 200, JSON, msgspec.json.encode(self._fleet.load())
            case _:
                return _json({"status": "ok"})

    async def answer_for_all(self, route: Route, request: Request, siblings: Siblings, number: int) -> Page:
        """The page of metrics, load or replicas, of all workers of this gateway; this one is `number`.

        Raises:
            Refusal: the page needs a key, or cannot be told whole.
        """
        if route is Route.METRICS:
            _, kind, own = self.answer(route, request)
            return 200, kind, await siblings.metrics(own, number)
        self.check_internal(request)
        whole: wire.GatewayLoad | wire.GatewayReport
        if route is Route.LOAD:
            whole = await siblings.load(self._fleet.load())
        else:
            whole = await siblings.report(self._fleet.report())
        return 200, JSON, msgspec.json.encode(whole)

    def _ready(self) -> Page:
        if self._is_draining():
            return _json({"status": "draining"}, 503)
        if not self._follower.has_answered:
            waiting = {f"{each.deployment.table.name}/{each.id}": each.reason for each in self._fleet.replicas()}
            return _json({"status": "no replica has answered yet", "replicas": waiting}, 503)
        return _json({"status": "ready"})

    def _models(self, token: str) -> dict[str, Any]:
        names = self._fleet.names()
        visible = [self._card(name, served) for name, served in names.items() if served.callers.may_use(token)]
        if names and not visible:
            next(iter(names.values())).callers.authorize(token)
        return {"object": "list", "data": visible}

    def _model(self, name: str, token: str) -> dict[str, Any]:
        deployment = self._fleet.serving(name)
        if deployment is None:
            raise no_model(name, self._fleet.visible(token))
        deployment.callers.authorize(token)
        return self._card(name, deployment)

    def _card(self, name: str, deployment: DeploymentState) -> dict[str, Any]:
        lengths = [replica.info.max_model_len for replica in deployment.replicas.values() if replica.info is not None]
        return {
            "id": name,
            "object": "model",
            "created": self._started_at,
            "owned_by": "quire",
            "root": deployment.table.served_names[0],
            "parent": None,
            "max_model_len": min(lengths, default=None),
        }

    def check_internal(self, request: Request) -> None:
        """
        Raises:
            Refusal: 401, the gateway has an internal key and the request does not show it.
        """
        given = (request.header(wire.HEADER_INTERNAL_KEY.encode()) or b"").decode("latin-1")
        if self._internal_key and not holds_key(given, [self._internal_key]):
            message = f"This page needs the internal key in the header {wire.HEADER_INTERNAL_KEY}."
            raise Refusal(401, "internal_key_needed", message)


def _json(value: object, status: int = 200) -> Page:
    return status, JSON, orjson.dumps(value)
