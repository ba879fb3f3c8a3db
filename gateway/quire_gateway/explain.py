"""GET and POST /debug/route: where a request would go now, and the numbers behind it; nothing is sent or counted.

Tokenising, hashing, matching and the policy are those of the data plane, called with the same arguments.
"""

from typing import Any
from urllib.parse import parse_qs

import msgspec

from quire_api import wire
from quire_gateway.choose import Choice
from quire_gateway.cost import Score
from quire_gateway.errors import Refusal, no_model
from quire_gateway.fleet import DeploymentState, Fleet, ReplicaState
from quire_gateway.models import ModelStore
from quire_gateway.request import Request


class Explainer:
    """Re-runs the choice of a replica."""

    def __init__(self, fleet: Fleet, models: ModelStore) -> None:
        self._fleet = fleet
        self._models = models

    async def explain(
        self, body: dict[str, Any], size: int, token: str | None, session: bytes = b""
    ) -> wire.RouteExplanation:
        """The choice for the chat or completion request `body`, `size` bytes of JSON, by whoever shows `token`.

        token: None may use any model, as a caller whose cached prefixes no key has.

        Raises:
            Refusal: the model is not served, or not for this key.
        """
        model = body.get("model")
        deployment = self._fleet.serving(model) if isinstance(model, str) else None
        if deployment is None:
            known = list(self._fleet.names()) if token is None else self._fleet.visible(token)
            raise no_model(model if isinstance(model, str) else "", known)
        caller = deployment.callers.everybody if token is None else deployment.callers.authorize(token)
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        replicas = deployment.candidates(set())
        info = next((replica.info for replica in replicas if replica.info is not None), None)
        prompt = await self._models.prompt(path, body, size, info)
        prompt = msgspec.structs.replace(prompt, salt=caller.salt(body))
        told = wire.RouteExplanation(
            model=str(model),
            deployment=deployment.table.name,
            namespace=deployment.table.namespace,
            policy=deployment.table.policy,
            index_mode="FALLBACK",
            prompt_tokens=prompt.count,
            is_tokenised=bool(prompt.tokens),
            held=deployment.held + len(deployment.turns),
        )
        # Tokenising took its time; who is a candidate is asked again, as the data plane does.
        replicas = deployment.candidates(set())
        if replicas:
            choice = Choice(deployment, prompt, session=session)
            pick = choice.pick(replicas)
            told.chosen, told.reason, told.miss = pick.replica, pick.reason, choice.miss(pick)
            told.index_mode = deployment.replicas[pick.replica].index_mode
            told.replicas = [_scored(score, deployment) for score in sorted(pick.scores, key=lambda score: score.cost)]
        told.replicas += _others(deployment, replicas)
        return told


def asked(request: Request) -> tuple[dict[str, Any], int]:
    """The request to explain, from the query: `model`, and `prompt` or `message`; with its size in bytes.

    Raises:
        Refusal: neither is there.
    """
    query = {name: values[-1] for name, values in parse_qs(request.query.decode("latin-1")).items()}
    body: dict[str, Any] = {"model": query.get("model")}
    if "message" in query:
        body["messages"] = [{"role": "user", "content": query["message"]}]
    elif "prompt" in query:
        body["prompt"] = query["prompt"]
    else:
        message = "Ask with ?model=NAME&message=TEXT or &prompt=TEXT, or POST the body of a completion request."
        raise Refusal(400, "missing_prompt", message)
    return body, len(query.get("message", query.get("prompt", "")).encode())


def _scored(score: Score, deployment: DeploymentState) -> wire.ReplicaScore:
    return wire.ReplicaScore(
        replica=score.replica,
        cost=score.cost,
        in_flight=score.in_flight,
        queued_tokens=score.queued_tokens,
        cached_tokens=score.cached_tokens,
        uncached_tokens=score.uncached_tokens,
        is_over_bound=score.is_over_bound,
        index_mode=deployment.replicas[score.replica].index_mode,
        index_problem=deployment.replicas[score.replica].feed.problem,
    )


def _others(deployment: DeploymentState, candidates: list[ReplicaState]) -> list[wire.ReplicaScore]:
    return [
        wire.ReplicaScore(
            replica=replica.id,
            in_flight=replica.in_flight,
            queued_tokens=replica.queued_tokens,
            excluded=replica.reason,
            index_mode=replica.index_mode,
            index_problem=replica.feed.problem,
        )
        for replica in deployment.replicas.values()
        if replica not in candidates
    ]
