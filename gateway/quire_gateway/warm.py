"""Before a new replica is routable it computes the prefixes that its siblings are asked for most."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from quire_api import wire
from quire_api.warming import HOT_PREFIXES_PATH, MOST_BYTES, WARM_PATH, WARMING_MEDIA_TYPE, HotPrefixes, Warmed
from quire_gateway.fleet import ReplicaState
from quire_gateway.health import internal_headers
from quire_gateway.upstream import UpstreamFailure

log = logging.getLogger(__name__)

MOST_SIBLINGS = 3
"""Asked one after the other, until one has something to tell."""
MOST_PREFIXES = 64
_ASK_AT_MOST_S = 5.0
_ANSWERS_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class WarmRules:
    """timeout_s: in all; 0: nobody is warmed. tokens: most to be computed, beginnings in common counted once."""

    timeout_s: float = 10.0
    tokens: int = 65536


@dataclass(frozen=True, slots=True)
class Warming:
    """outcome: `warmed`; `cut` (in part, the time was over); `nothing_hot` (siblings tell of none); `not_told` (none of
    them tells); `not_needed` (another gateway had it warmed, or it has a cache of its own); `refused`; `failed`.
    """

    outcome: str
    seconds: float = 0.0
    prefixes: int = 0
    tokens: int = 0


OnWarming = Callable[[tuple[str, str], Warming], None]


def siblings_of(replica: ReplicaState, info: wire.ModelInfo, now: float) -> list[ReplicaState]:
    """Who may tell `replica` of its prefixes: those that get requests and know blocks by the same keys.

    Whether this gateway can compute those keys does not matter. First the one whose cache has saved most of late.
    """
    alike = [
        each
        for each in replica.deployment.candidates(set())
        if each is not replica and each.info is not None and info.block_size and _keys(each.info) == _keys(info)
    ]
    return sorted(alike, key=lambda each: each.saved_tokens.value(now), reverse=True)[:MOST_SIBLINGS]


def _keys(info: wire.ModelInfo) -> tuple[str, int, str, int]:
    """What engines must have in common to know blocks by the same keys."""
    return info.model_revision, info.block_size, info.adapter, info.block_format


async def warm(replica: ReplicaState, info: wire.ModelInfo, rules: WarmRules) -> Warming | None:
    """Have `replica` compute what a sibling is asked for; None where there is none, or nobody may ask it.

    It never takes longer than the rules allow, and what goes wrong changes nobody's health: without warming a replica
    is as good as it was before there was any.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    siblings = siblings_of(replica, info, started)
    tokens = min(rules.tokens, info.kv_capacity_tokens // 2)
    if replica.is_draining or not (rules.timeout_s and tokens and siblings and replica.deployment.table.internal_key):
        return None
    warmed = Warmed()
    try:
        async with asyncio.timeout(rules.timeout_s):
            each_s = min(rules.timeout_s / 2, _ASK_AT_MOST_S) / len(siblings)
            outcome, hot = await _ask(siblings, tokens, each_s)
            if hot:
                outcome, warmed = await _give(replica, hot, started + rules.timeout_s - loop.time())
    except TimeoutError:
        outcome = "cut"
    return Warming(outcome, loop.time() - started, warmed.prefixes, warmed.tokens)


async def _ask(siblings: Sequence[ReplicaState], tokens: int, timeout_s: float) -> tuple[str, bytes]:
    """The first sibling's hot prefixes as it packed them; without any, what became of asking."""
    path = f"{HOT_PREFIXES_PATH}?prefixes={MOST_PREFIXES}&tokens={tokens}"
    outcome = "not_told"
    for sibling in siblings:
        if not sibling.is_candidate:
            continue
        headers = internal_headers(sibling.deployment.table.internal_key)
        try:
            status, body = await sibling.pool.fetch(
                "GET", path, headers=headers, timeout_s=timeout_s, max_bytes=MOST_BYTES
            )
            if status == 200:
                if msgspec.msgpack.decode(body, type=HotPrefixes).prefixes:
                    return "", body
                outcome = "nothing_hot"
            else:
                log.info("replica %s tells no hot prefixes: it answered %d", sibling.id, status)
        except (UpstreamFailure, msgspec.MsgspecError) as error:
            log.info("replica %s tells no hot prefixes: %s", sibling.id, error)
    return outcome, b""


async def _give(replica: ReplicaState, hot: bytes, timeout_s: float) -> tuple[str, Warmed]:
    """The engine ends in time by itself, so that it can tell how far it came."""
    seconds = max(1, int(timeout_s - _ANSWERS_WITHIN_S))
    headers = [
        (b"content-type", WARMING_MEDIA_TYPE.encode()),
        *internal_headers(replica.deployment.table.internal_key),
    ]
    path = f"{WARM_PATH}?seconds={seconds}"
    try:
        status, body = await replica.pool.fetch(
            "POST", path, headers=headers, body=hot, timeout_s=timeout_s, max_bytes=1 << 16
        )
        if status != 200:
            log.info("replica %s takes no prefixes: it answered %d", replica.id, status)
            return "refused", Warmed()
        warmed = msgspec.json.decode(body, type=Warmed)
    except UpstreamFailure as failure:
        log.info("replica %s was not warmed: %s", replica.id, failure)
        return "cut" if failure.cause == "timeout" else "failed", Warmed()
    except msgspec.MsgspecError as error:
        log.info("replica %s was not warmed: %s", replica.id, error)
        return "failed", Warmed()
    return "not_needed" if warmed.skipped else "cut" if warmed.is_cut else "warmed", warmed
