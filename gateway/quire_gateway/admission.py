"""Who may ask, and how much at a time."""

import asyncio
import hmac
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from quire_api import wire
from quire_api.blocks import caller_salt
from quire_gateway.errors import Refusal
from quire_gateway.fleet import DeploymentState, Excluded
from quire_gateway.request import Headers


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one deployment may have in the gateway at a time; counts and seconds."""

    in_flight_per_replica: int = 512
    held: int = 1024
    hold_timeout_s: float = 60.0


def holds_key(token: str, keys: Iterable[str]) -> bool:
    """Whether `token` is one of `keys`; the time it takes does not tell how much of it was right."""
    given = token.encode()
    is_held = False
    for key in keys:
        is_held |= hmac.compare_digest(given, key.encode())
    return is_held


def may_use(deployment: DeploymentState, token: str) -> bool:
    """A deployment without keys is open; once it has one, only its keys pass."""
    keys = deployment.table.api_keys
    return not keys or holds_key(token, keys)


def authorize(deployment: DeploymentState, token: str) -> None:
    """
    Raises:
        Refusal: 401, the token is missing or not one of the deployment's keys.
    """
    if may_use(deployment, token):
        return
    if not token:
        message = "This model needs an API key. Send it as `Authorization: Bearer KEY`."
        raise Refusal(401, "missing_api_key", message)
    raise Refusal(401, "invalid_api_key", "The API key is not valid for this model. Check the key.")


def salt_of(deployment: DeploymentState, token: str, body: Mapping[str, Any]) -> str:
    """What keeps this caller's cached prefixes from others: the API key, where there are keys, and `cache_salt`."""
    asked = body.get("cache_salt")
    asked = asked if isinstance(asked, str) else ""
    return caller_salt(sha256(token.encode()).digest(), asked) if deployment.table.api_keys else asked


def admit(deployment: DeploymentState, bounds: Bounds) -> None:
    """
    Raises:
        Refusal: 429, the deployment has as much in flight as its replicas are allowed.
    """
    routable = sum(replica.is_candidate for replica in deployment.replicas.values())
    limit = bounds.in_flight_per_replica * max(1, routable)
    if deployment.in_flight + deployment.held >= limit:
        message = f"{deployment.table.name} has {limit} requests in flight, its limit. Try again in a moment."
        raise Refusal(429, "too_many_in_flight", message, retry_after_s=1)


@dataclass(slots=True)
class Wait:
    """How long and where in the queue one request has been held."""

    deadline: float
    """Time of the loop's clock."""
    position: int = 0
    """1 for the first of those held; 0 for a request that never was."""
    seconds: float = 0.0

    def headers(self) -> Headers:
        """What the client is told of it."""
        told = [(wire.HEADER_QUEUE_MS.encode(), f"{self.seconds * 1000:.0f}".encode())]
        if self.position:
            until = time.time() + self.deadline - asyncio.get_running_loop().time()
            told.append((wire.HEADER_QUEUE_POSITION.encode(), str(self.position).encode()))
            told.append((wire.HEADER_QUEUE_DEADLINE.encode(), f"{until:.3f}".encode()))
        return told


async def hold(deployment: DeploymentState, excluded: Excluded, bounds: Bounds, wait: Wait) -> None:
    """Keep a request until the deployment has a replica that is not excluded; `wait` records how long.

    Raises:
        Refusal: 503, none came in time, or too many wait already.
    """
    name = deployment.table.name
    if deployment.held >= bounds.held:
        message = f"{name} has no replica and {bounds.held} requests wait for one already. Try again later."
        raise Refusal(503, "too_many_held", message, retry_after_s=5)
    deployment.held += 1
    loop = asyncio.get_running_loop()
    began = loop.time()
    wait.position = wait.position or deployment.held
    try:
        async with asyncio.timeout_at(wait.deadline):
            while not deployment.candidates(excluded):
                await deployment.change()
    except TimeoutError:
        wait.seconds += loop.time() - began
        raise Refusal(503, "no_replica", _why_none(deployment), retry_after_s=5, extra_headers=wait.headers()) from None
    else:
        wait.seconds += loop.time() - began
    finally:
        deployment.held -= 1


def _why_none(deployment: DeploymentState) -> str:
    reasons = [f"{replica.id}: {replica.reason}" for replica in deployment.replicas.values() if replica.reason]
    state = "; ".join(reasons[:3]) or "it has no replicas"
    return f"No replica of {deployment.table.name} became ready in time ({state}). Try again later."


class RetryBudget:
    """Retries follow the requests at a fixed ratio, so that a failing fleet is not asked many times over.

    The first retry after a replica was lost is not charged: it cannot become a storm, and the request is innocent.
    """

    def __init__(self, ratio: float = 0.2, floor: float = 10.0) -> None:
        self._ratio = ratio
        self._floor = floor
        self._left = floor

    def request_came(self) -> None:
        self._left = min(self._floor, self._left + self._ratio)

    def take(self) -> bool:
        """Whether one more retry is allowed; it is charged if so."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
