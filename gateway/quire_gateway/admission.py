"""Who may ask, and how much at a time."""

import asyncio
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import ceil
from typing import Any

from quire_gateway.errors import Refusal
from quire_gateway.fleet import Bounds, DeploymentState, Excluded
from quire_gateway.keys import Caller
from quire_gateway.limits import OverLimit, Permit, allowances
from quire_gateway.request import Headers
from quire_gateway.wait import Wait


def holds_key(token: str, keys: Iterable[str]) -> bool:
    """Whether `token` is one of `keys`; the time it takes does not tell how much of it was right."""
    given = token.encode()
    is_held = False
    for key in keys:
        is_held |= hmac.compare_digest(given, key.encode())
    return is_held


def begin(caller: Caller, deployment: str, now: float) -> Permit:
    """Count one request of `caller`; the permit is to be ended.

    Raises:
        Refusal: 429, that is one too many.
    """
    try:
        return Permit(caller.usage, caller.key.limits, now)
    except OverLimit as over:
        raise _over(over, caller, deployment, now) from None


def take_tokens(
    permit: Permit, caller: Caller, deployment: str, input_tokens: int, body: Mapping[str, Any], now: float
) -> None:
    """Count the prompt of a request, and what it may write.

    Raises:
        Refusal: 429, that is too much now, or at any time.
    """
    try:
        permit.take_tokens(input_tokens, most_output(body), now)
    except OverLimit as over:
        raise _over(over, caller, deployment, now) from None


def most_output(body: Mapping[str, Any]) -> int | None:
    """Tokens that the answers to a request may have together; None where it does not say."""
    most = body.get("max_completion_tokens")
    most = body.get("max_tokens") if most is None else most
    if not isinstance(most, int) or most < 0:
        return None
    choices = body.get("n")
    choices = choices if isinstance(choices, int) and choices > 0 else 1
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return most * choices * prompts


def rate_limit_headers(caller: Caller, now: float) -> Headers:
    """x-ratelimit-* as clients of OpenAI know them; `-tokens` tells of the token limit that is nearest to its end."""
    limits = caller.key.limits
    if (limits.requests_per_minute, limits.input_tokens_per_minute, limits.output_tokens_per_minute) == _NONE:
        return []
    told = list(allowances(caller.usage, limits, now))
    tokens = [allowance for allowance in told if allowance.name != "requests"]
    if tokens:
        tightest = min(tokens, key=lambda allowance: allowance.remaining / allowance.limit)
        told.append(replace(tightest, name="tokens"))
    headers = []
    for each in told:
        name = each.name.encode()
        headers.append((b"x-ratelimit-limit-%b" % name, b"%d" % each.limit))
        headers.append((b"x-ratelimit-remaining-%b" % name, b"%d" % each.remaining))
        headers.append((b"x-ratelimit-reset-%b" % name, b"%ds" % ceil(each.reset_s)))
    return headers


_NONE = (None, None, None)
_PER_MINUTE = {
    "request": ("requests", "requestsPerMinute"),
    "input_token": ("prompt tokens", "inputTokensPerMinute"),
    "output_token": ("output tokens", "outputTokensPerMinute"),
}


def _over(over: OverLimit, caller: Caller, deployment: str, now: float) -> Refusal:
    who = f"The key {caller.name}" if caller.name else "This model"
    headers = rate_limit_headers(caller, now)
    if over.limit == "concurrency":
        message = f"{who} has {over.allowed} requests at a time at {deployment}, its limit. Try again later."
        return Refusal(429, "concurrency_limit", message, retry_after_s=1, extra_headers=headers)
    what, field = _PER_MINUTE[over.limit]
    if over.is_final:
        message = (
            f"The request asks for {over.asked} {what}, but {who[0].lower()}{who[1:]} has {over.allowed} a minute at "
            f"{deployment}. Send a shorter prompt, a smaller max_tokens, or ask for a higher {field}."
        )
        # The header that OpenAI's clients heed: no time of waiting helps.
        headers.append((b"x-should-retry", b"false"))
        return Refusal(429, "request_too_large", message, extra_headers=headers)
    message = f"{who} has {over.allowed} {what} a minute at {deployment}, which are used up. Try again later."
    after_s = ceil(over.retry_after_s)
    return Refusal(429, f"{over.limit}_limit", message, retry_after_s=after_s, extra_headers=headers)


async def hold(
    deployment: DeploymentState, excluded: Excluded, bounds: Bounds, wait: Wait, *, has_begun: bool = False
) -> None:
    """Keep a request until the deployment has a replica that is not excluded; `wait` records how long.

    has_begun: its client has the beginning of the answer, so it is held whoever waits already.

    Raises:
        Refusal: 503, none came in time, or too many wait already.
    """
    name = deployment.table.name
    if deployment.held >= bounds.held and not has_begun:
        message = f"{name} has no replica and {bounds.held} requests wait for one already. Try again later."
        raise Refusal(503, "too_many_held", message, retry_after_s=5)
    deployment.held += 1
    deployment.is_waking = True
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
