"""The way in: authenticate, find the model, count the request, and say how it ended."""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from quire_api.body_limits import TOO_MANY_VALUES, holds_too_much
from quire_api.openai_responses import listed
from quire_api.tracing import Span, Tracing
from quire_gateway.access_log import Exchange
from quire_gateway.admission import begin
from quire_gateway.errors import Refusal, no_model
from quire_gateway.fleet import Bounds, DeploymentState, Fleet, ReplicaState
from quire_gateway.life import ForwardRules, Life, Means
from quire_gateway.metrics import Metrics
from quire_gateway.models import ModelStore
from quire_gateway.reply import Reply
from quire_gateway.request import Request
from quire_gateway.routes import Route


class Proxy:
    """Carries requests for models to replicas."""

    def __init__(
        self,
        fleet: Fleet,
        models: ModelStore,
        metrics: Metrics,
        bounds: Bounds,
        rules: ForwardRules,
        on_ejected: Callable[[ReplicaState], None],
        tracing: Tracing | None = None,
    ) -> None:
        self.tracing = tracing
        self._fleet = fleet
        self._means = Means(models, metrics, bounds, rules, on_ejected)

    async def serve(self, route: Route, request: Request, reply: Reply, exchange: Exchange) -> None:
        """Answer `request`, recording in `exchange` what became of it.

        Raises:
            Refusal: nothing has been sent to the client yet, and no replica will be asked (again).
        """
        token = request.bearer_token()
        self._fleet.check_token(token)
        body = parse_body(request.body)
        deployment = self._find(route, body, token, exchange)
        caller = deployment.callers.authorize(token)
        exchange.key = caller.name
        loop, meter = asyncio.get_running_loop(), deployment.load
        permit = begin(caller, deployment.table.name, loop.time())
        deployment.retries.request_came()
        meter.began(loop.time())
        span = None if self.tracing is None else self.tracing.begin(f"{request.method} {request.path}", request.headers)
        life = Life(self._means, route, request, reply, exchange, deployment, body, caller, permit, span)
        refused = 0
        try:
            await life.run()
        except Refusal as refusal:
            refused = refusal.status
            raise
        except BaseException as error:
            exchange.ended_by(error)
            raise
        finally:
            meter.ended(loop.time())
            life.settle()
            if span is not None:
                _end_span(span, exchange, reply.status or refused)

    def _find(self, route: Route, body: dict[str, Any], token: str, exchange: Exchange) -> DeploymentState:
        model = body.get("model")
        if model is None and route is Route.FORWARD and len(visible := self._fleet.visible(token)) == 1:
            model = visible[0]
        if not isinstance(model, str) or not model:
            message = f"The body needs `model`, a string. Served here: {listed(self._fleet.visible(token))}."
            raise Refusal(400, "missing_model", message, param="model")
        exchange.model = model
        deployment = self._fleet.serving(model)
        if deployment is None:
            raise no_model(model, self._fleet.visible(token))
        exchange.namespace, exchange.deployment = deployment.key
        return deployment


def parse_body(body: bytes) -> dict[str, Any]:
    """
    Raises:
        Refusal: 400, not a JSON object, or one of more values than an engine would take.
    """
    if holds_too_much(body):
        raise Refusal(400, "too_many_values", TOO_MANY_VALUES)
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        message = f"The body is not valid JSON in UTF-8: {error}." if body else "The body is empty; send a JSON object."
        raise Refusal(400, "invalid_json", message) from None
    if not isinstance(parsed, dict):
        raise Refusal(400, "invalid_json", "The body must be a JSON object.")
    return parsed


def _end_span(span: Span, exchange: Exchange, status: int) -> None:
    failed = exchange.outcome in ("broken", "error", "client_gone") or status >= 500
    span.end(
        (exchange.detail or exchange.outcome) if failed else "",
        gen_ai__request__model=exchange.model,
        gen_ai__usage__input_tokens=exchange.prompt_tokens,
        gen_ai__usage__output_tokens=exchange.output_tokens,
        http__response__status_code=status,
        quire__request_id=exchange.request_id,
        quire__deployment=exchange.deployment,
        quire__replica=exchange.replica,
        quire__reason=exchange.reason,
        quire__cached_tokens=exchange.cached_tokens,
        quire__queue_ms=exchange.queue_ms,
        quire__attempts=exchange.attempts,
        quire__moves=exchange.moves,
    )
