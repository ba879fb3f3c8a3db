"""Pages that speak for a whole gateway of several workers: whoever is asked asks the others, and adds up."""

import asyncio
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from quire_api import wire
from quire_gateway.errors import Refusal
from quire_gateway.health import internal_headers
from quire_gateway.upstream import UpstreamFailure, UpstreamPool

OWN = b"own"
"""Query of a page that is to tell of the asked worker alone."""
_PATIENCE_S = 2.0
_LARGEST = 64 << 20
T = TypeVar("T", bound=msgspec.Struct)


class Siblings:
    """The other workers of this gateway.

    addresses: HOST:PORT of the others' inner ports; none for a gateway of one process.
    """

    def __init__(self, addresses: Sequence[str], internal_key: str) -> None:
        self._pools = [UpstreamPool(f"http://{address}") for address in addresses]
        self._headers = internal_headers(internal_key)

    def __len__(self) -> int:
        return len(self._pools)

    async def load(self, own: wire.GatewayLoad) -> wire.GatewayLoad:
        """Of the whole gateway.

        Raises:
            Refusal: a worker does not say, and half a load would be taken for all of it.
        """
        told = [own, *await self._ask("/internal/v1/load", wire.GatewayLoad)]
        if len(told) <= len(self._pools):
            raise Refusal(503, "worker_silent", "A worker of this gateway does not answer. Ask again.", retry_after_s=1)
        return whole_load(told)

    async def report(self, own: wire.GatewayReport) -> wire.GatewayReport:
        """Of the whole gateway; a worker that does not answer has no say."""
        return whole_report([own, *await self._ask("/internal/v1/replicas", wire.GatewayReport)])

    async def metrics(self, own: bytes, number: int) -> bytes:
        """Every worker's samples under the label `worker`; this one is `number`."""
        others = await asyncio.gather(*(self._fetch(pool, "/metrics") for pool in self._pools))
        numbers = [each for each in range(len(self._pools) + 1) if each != number]
        told = {number: own, **{who: text for who, text in zip(numbers, others, strict=True) if text is not None}}
        return labelled({str(who): told[who].decode() for who in sorted(told)})

    async def _ask(self, path: str, kind: type[T]) -> list[T]:
        answers = await asyncio.gather(*(self._fetch(pool, path) for pool in self._pools))
        return [msgspec.json.decode(answer, type=kind) for answer in answers if answer is not None]

    async def _fetch(self, pool: UpstreamPool, path: str) -> bytes | None:
        path = f"{path}?{OWN.decode()}"
        try:
            async with asyncio.timeout(_PATIENCE_S):
                status, body = await pool.fetch(
                    "GET", path, headers=self._headers, timeout_s=_PATIENCE_S, max_bytes=_LARGEST
                )
        except (UpstreamFailure, TimeoutError):
            return None
        return body if status == 200 else None


def whole_load(told: Sequence[wire.GatewayLoad]) -> wire.GatewayLoad:
    """Counts added up, latencies of the slowest, idle as long as all are."""
    deployments: dict[tuple[str, str], wire.DeploymentLoad] = {}
    for load in told:
        for entry in load.deployments:
            key = entry.namespace, entry.deployment
            before = deployments.get(key)
            deployments[key] = entry if before is None else _both(before, entry)
    return wire.GatewayLoad(
        gateway="+".join(sorted(load.gateway for load in told)),
        deployments=list(deployments.values()),
        window_s=told[0].window_s,
    )


def _both(one: wire.DeploymentLoad, other: wire.DeploymentLoad) -> wire.DeploymentLoad:
    return wire.DeploymentLoad(
        deployment=one.deployment,
        namespace=one.namespace,
        in_flight=one.in_flight + other.in_flight,
        held=one.held + other.held,
        queued_tokens=one.queued_tokens + other.queued_tokens,
        requests=one.requests + other.requests,
        idle_s=min(one.idle_s, other.idle_s),
        ttft_p50_s=_slower(one.ttft_p50_s, other.ttft_p50_s),
        ttft_p90_s=_slower(one.ttft_p90_s, other.ttft_p90_s),
        itl_p50_s=_slower(one.itl_p50_s, other.itl_p50_s),
        itl_p90_s=_slower(one.itl_p90_s, other.itl_p90_s),
        arrivals_per_s=None
        if one.arrivals_per_s is None or other.arrivals_per_s is None
        else one.arrivals_per_s + other.arrivals_per_s,
        service_s=_slower(one.service_s, other.service_s),
    )


def _slower(one: float | None, other: float | None) -> float | None:
    return max((each for each in (one, other) if each is not None), default=None)


def whole_report(told: Sequence[wire.GatewayReport]) -> wire.GatewayReport:
    """Of each replica the counts of all workers; routable if any says so, draining only where all do."""
    said: dict[tuple[str, str, str], list[wire.ReplicaReport]] = {}
    for report in told:
        for entry in report.replicas:
            said.setdefault((entry.namespace, entry.deployment, entry.replica), []).append(entry)
    return wire.GatewayReport(
        replicas=[
            msgspec.structs.replace(
                min(entries, key=lambda entry: (entry.reason == "Draining", not entry.is_routable)),
                is_routable=any(entry.is_routable for entry in entries),
                in_flight=sum(entry.in_flight for entry in entries),
                queued_tokens=sum(entry.queued_tokens for entry in entries),
                warmth=round(sum(entry.warmth for entry in entries), 3),
            )
            for entries in said.values()
        ]
    )


def labelled(expositions: dict[str, str]) -> bytes:
    """Prometheus expositions of several workers as one, each sample with its worker's label."""
    families: dict[str, Metric] = {}
    for worker, text in expositions.items():
        for family in text_string_to_metric_families(text):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            whole.samples += [sample._replace(labels={**sample.labels, "worker": worker}) for sample in family.samples]
    registry = CollectorRegistry()
    registry.register(_Collected(list(families.values())))  # type: ignore[arg-type]
    return generate_latest(registry)


class _Collected:
    """What has been gathered, as a collector."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
