"""What the gateways say: found by their label (or named), asked every second, summed up for each pod."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import aiohttp
import msgspec

from quire_api import wire
from quire_api.v1alpha1 import ModelFacts
from quire_operator.kube import ApiError, ApiUnavailable, Kube
from quire_operator.metrics import GATEWAYS
from quire_operator.pods import GatewayWord
from quire_operator.world import Key

log = logging.getLogger(__name__)

ASK_EVERY_S = 1.0
FIND_EVERY_S = 5.0
TIMEOUT_S = 2.0
FORGET_AFTER_S = 10.0
"""A gateway that was heard this long ago still counts: one lost answer closes nothing."""


LOST_AFTER_S = 15.0
"""So long all gateways must fail to get an answer through a replica before it is called lost: a broken connection is
probed again within 5 s, and a gateway that fell silent after saying so is forgotten earlier."""
_FAILING = ("Ejected", "ProbeFailed")
"""Beginnings of reasons; a replica that starts, is warmed or drains has lost nothing."""


@dataclass(frozen=True, slots=True)
class _Heard:
    at: float
    content: bytes
    report: wire.GatewayReport


class Gateways:
    """Words and facts as of the last round; `on_change` gets the deployments whose words have changed."""

    def __init__(
        self,
        kube: Kube,
        on_change: Callable[[Iterable[Key]], None],
        *,
        namespace: str,
        labels: Mapping[str, str],
        port: int,
        internal_key: str,
        addresses: Sequence[str] = (),
    ) -> None:
        self.words: dict[Key, dict[str, GatewayWord]] = {}
        self.facts: dict[Key, dict[str, ModelFacts]] = {}
        self.count = 0
        self._kube = kube
        self._on_change = on_change
        self._namespace = namespace
        self._labels = ",".join(f"{name}={value}" for name, value in labels.items())
        self._port = port
        self._headers = {wire.HEADER_INTERNAL_KEY: internal_key.strip()} if internal_key else {}
        self._fixed = list(addresses)
        self._addresses = list(addresses)
        self._found_at = float("-inf")
        self._heard: dict[str, _Heard] = {}
        self._summed_up: list[wire.GatewayReport] = []
        self._failing_since: dict[tuple[Key, str], float] = {}
        self._next_lost_at = float("inf")
        self._http = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(TIMEOUT_S)
        )

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            await self._round()
            await asyncio.sleep(ASK_EVERY_S)

    async def close(self) -> None:
        await self._http.close()

    async def _round(self) -> None:
        now = time.monotonic()
        if not self._fixed and now - self._found_at >= FIND_EVERY_S:
            await self._find()
            self._found_at = now
        await asyncio.gather(*(self._ask(address) for address in self._addresses))
        self._heard = {
            address: heard
            for address, heard in self._heard.items()
            if address in self._addresses and now - heard.at < FORGET_AFTER_S
        }
        reports = [heard.report for heard in self._heard.values()]
        # An answer that has not changed keeps its report: with a thousand quiet pods there is nothing to do.
        if list(map(id, reports)) == list(map(id, self._summed_up)) and now < self._next_lost_at:
            return
        self._summed_up = reports
        before, count = self.words, self.count
        self.words, self.count = words_of(reports), len(reports)
        self._find_lost(now)
        GATEWAYS.set(self.count)
        facts, self.facts = self.facts, facts_of(reports)
        keys = before.keys() | self.words.keys()
        changed = {key for key in keys if _matters(before.get(key)) != _matters(self.words.get(key))}
        changed |= {key for key in keys if facts.get(key) != self.facts.get(key)}
        if changed or (count == 0) != (self.count == 0):
            self._on_change(changed if (count == 0) == (self.count == 0) else ())

    def _find_lost(self, now: float) -> None:
        failing = [(key, pod) for key, words in self.words.items() for pod, word in words.items() if word.is_failing]
        self._failing_since = {place: self._failing_since.get(place, now) for place in failing}
        due = {place: since + LOST_AFTER_S for place, since in self._failing_since.items()}
        for (key, pod), at in due.items():
            if at <= now:
                self.words[key][pod] = replace(self.words[key][pod], is_lost=True)
        self._next_lost_at = min((at for at in due.values() if at > now), default=float("inf"))

    async def _find(self) -> None:
        try:
            pods = await self._kube.list("v1", "Pod", self._namespace, self._labels)
        except (ApiError, ApiUnavailable) as error:
            log.warning("the gateways' pods cannot be listed: %s", error)
            return
        addresses = [
            pod.get("status", {}).get("podIP") for pod in pods if pod.get("status", {}).get("phase") == "Running"
        ]
        self._addresses = [
            f"http://{f'[{address}]' if ':' in address else address}:{self._port}" for address in addresses if address
        ]

    async def ask_load(self) -> list[wire.GatewayLoad | None]:
        """The load of every known gateway; None for one that does not answer."""
        return list(await asyncio.gather(*(self._ask_load(address) for address in self._addresses)))

    async def _ask_load(self, address: str) -> wire.GatewayLoad | None:
        try:
            return msgspec.json.decode(await self._get(f"{address}/internal/v1/load"), type=wire.GatewayLoad)
        except (aiohttp.ClientError, OSError, ValueError, msgspec.MsgspecError):
            return None

    async def _ask(self, address: str) -> None:
        try:
            content = await self._get(f"{address}/internal/v1/replicas")
            known = self._heard.get(address)
            if known is not None and known.content == content:
                report = known.report
            else:
                report = msgspec.json.decode(content, type=wire.GatewayReport)
            self._heard[address] = _Heard(time.monotonic(), content, report)
        except (aiohttp.ClientError, OSError, ValueError, msgspec.MsgspecError) as error:
            log.debug("gateway %s: %s", address, str(error) or type(error).__name__)

    async def _get(self, url: str) -> bytes:
        async with self._http.get(url, headers=self._headers, allow_redirects=False) as answer:
            answer.raise_for_status()
            return await answer.read()


def words_of(reports: Sequence[wire.GatewayReport]) -> dict[Key, dict[str, GatewayWord]]:
    """All gateways' reports as one word for each pod: routable if any says so, in-flight requests added up."""
    words: dict[Key, dict[str, GatewayWord]] = {}
    for report in reports:
        for entry in report.replicas:
            mine = words.setdefault(Key(entry.namespace, entry.deployment), {})
            is_failing = not entry.is_routable and entry.reason.startswith(_FAILING)
            said = GatewayWord(entry.is_routable, entry.in_flight, entry.reason == "Draining", entry.warmth, is_failing)
            before = mine.get(entry.replica)
            mine[entry.replica] = said if before is None else _together(before, said)
    return words


def _together(one: GatewayWord, other: GatewayWord) -> GatewayWord:
    return GatewayWord(
        one.is_routable or other.is_routable,
        one.in_flight + other.in_flight,
        one.is_drain_seen and other.is_drain_seen,
        one.warmth + other.warmth,
        one.is_failing and other.is_failing,
    )


def facts_of(reports: Sequence[wire.GatewayReport]) -> dict[Key, dict[str, ModelFacts]]:
    """What each replica's engine says of its model, through whichever gateway has asked it."""
    facts: dict[Key, dict[str, ModelFacts]] = {}
    for report in reports:
        for entry in report.replicas:
            if entry.model is not None:
                facts.setdefault(Key(entry.namespace, entry.deployment), {})[entry.replica] = ModelFacts(
                    architecture=entry.model.architecture or None,
                    parameters=max(entry.model.num_parameters, 0) or None,
                    context_length=max(entry.model.max_model_len, 0),
                    revision=entry.model.model_revision,
                )
    return facts


def _matters(words: Mapping[str, GatewayWord] | None) -> dict[str, tuple[bool, ...]]:
    """The part of the words that is worth a look: how busy a pod is counts only at the end of its drain."""
    return {
        pod: (word.is_routable, word.is_lost, word.is_drain_seen, word.is_drain_seen and word.in_flight == 0)
        for pod, word in (words or {}).items()
    }
