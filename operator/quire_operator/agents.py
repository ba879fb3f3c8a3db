"""What the agents beside starting engines say: how far the weights are, and how large the model is.

A reconcile names the pods that are worth asking; nobody is asked any more once the weights are there.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import aiohttp
import msgspec

from quire_api import wire
from quire_operator.build_pod import AGENT, AGENT_PORT
from quire_operator.merge import Manifest
from quire_operator.world import Key, Loading, reason_or

log = logging.getLogger(__name__)

ASK_EVERY_S = 2.0
SAY_EVERY_S = 5.0
"""Mere progress reaches a status no more often than this."""
TIMEOUT_S = 2.0
AT_A_TIME = 16
GiB = 2**30


@dataclass(frozen=True)
class Target:
    """One agent to ask."""

    pod: str
    address: str
    internal_key: str


class Agents:
    """`heard` has what was told last, by deployment and pod; `on_change` gets the deployments it changed for."""

    def __init__(self, on_change: Callable[[Iterable[Key]], None], port: int = AGENT_PORT) -> None:
        self.heard: dict[Key, dict[str, wire.AgentProgress]] = {}
        self._on_change = on_change
        self._port = port
        self._targets: dict[Key, list[Target]] = {}
        self._said_at: dict[tuple[Key, str], float] = {}
        self._slots = asyncio.Semaphore(AT_A_TIME)
        self._http = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(TIMEOUT_S)
        )

    def watch(self, key: Key, pods: Iterable[Manifest], internal_key: str) -> None:
        """Ask those of the deployment's pods whose weights are on their way; forget the others."""
        pods = [pod for pod in pods if is_fetching(pod)]
        names = {str(pod["metadata"]["name"]) for pod in pods}
        kept = {name: said for name, said in self.heard.get(key, {}).items() if name in names}
        for gone in self.heard.get(key, {}).keys() - names:
            self._said_at.pop((key, gone), None)
        self.heard[key] = kept
        self._targets[key] = [
            Target(str(pod["metadata"]["name"]), str(pod["status"]["podIP"]), internal_key)
            for pod in pods
            if (known := kept.get(str(pod["metadata"]["name"]))) is None or known.phase != "complete"
        ]
        if not pods:
            self.forget(key)

    def forget(self, key: Key) -> None:
        for pod in self.heard.pop(key, {}):
            self._said_at.pop((key, pod), None)
        self._targets.pop(key, None)

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            asked = [(key, target) for key, targets in self._targets.items() for target in targets]
            await asyncio.gather(*(self._ask(key, target) for key, target in asked))
            await asyncio.sleep(ASK_EVERY_S)

    async def close(self) -> None:
        await self._http.close()

    async def _ask(self, key: Key, target: Target) -> None:
        host = f"[{target.address}]" if ":" in target.address else target.address
        url, headers = f"http://{host}:{self._port}/progress", {wire.HEADER_INTERNAL_KEY: target.internal_key}
        async with self._slots:
            try:
                async with self._http.get(url, headers=headers, allow_redirects=False) as answer:
                    answer.raise_for_status()
                    said = msgspec.json.decode(await answer.read(), type=wire.AgentProgress)
            except (aiohttp.ClientError, OSError, ValueError, msgspec.MsgspecError) as error:
                log.debug("agent of %s: %s", target.pod, str(error) or type(error).__name__)
                return
        if target in self._targets.get(key, ()):
            self._take(key, target.pod, said)

    def _take(self, key: Key, pod: str, said: wire.AgentProgress) -> None:
        known = self.heard.setdefault(key, {})
        before, now = known.get(pod), time.monotonic()
        is_step = before is None or (before.phase, before.reason, before.shape) != (said.phase, said.reason, said.shape)
        is_due = now - self._said_at.get((key, pod), float("-inf")) >= SAY_EVERY_S
        if said == before or not (is_step or is_due):
            return
        known[pod], self._said_at[key, pod] = said, now
        self._on_change([key])


def is_fetching(pod: Manifest) -> bool:
    """Whether its agent runs and the engine waits for it, or loads what it has brought."""
    status = pod.get("status") or {}
    if not status.get("podIP") or pod["metadata"].get("deletionTimestamp"):
        return False
    agent: Manifest = next((c for c in status.get("initContainerStatuses") or () if c.get("name") == AGENT), {})
    conditions = status.get("conditions") or ()
    is_ready = any(c.get("type") == "ContainersReady" and c.get("status") == "True" for c in conditions)
    return not is_ready and "running" in (agent.get("state") or {})


def loading_of(said: wire.AgentProgress) -> Loading | None:
    """The part of the way that the agent can tell of; None once the engine is at work."""
    if said.reason and said.phase in ("starting", "fetching"):
        share = said.bytes_done / said.bytes_total if said.bytes_total else 0.0
        return Loading(reason_or("Downloading", said.reason), f"{said.message} It tries again.", share)
    if said.phase == "starting" or (said.phase == "fetching" and not said.bytes_total):
        return Loading("Downloading", "the store is asked for the model", 0.0)
    if said.phase == "waiting":
        return Loading("Downloading", said.message or "another pod fetches into the same volume", 0.0)
    if said.phase == "fetching":
        done, total = said.bytes_done / GiB, said.bytes_total / GiB
        speed = f"{said.bytes_per_second / 1e6:.0f} MB/s"
        digits = 1 if total >= 1 else 3
        return Loading("Downloading", f"{done:.{digits}f} of {total:.{digits}f} GiB, {speed}", done / total)
    return None


def loadings(heard: Mapping[str, wire.AgentProgress]) -> dict[str, Loading]:
    """By pod."""
    found = {pod: loading_of(said) for pod, said in heard.items()}
    return {pod: loading for pod, loading in found.items() if loading is not None}
