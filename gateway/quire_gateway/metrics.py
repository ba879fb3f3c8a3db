"""What the gateway measures, as Prometheus metrics in a registry of its own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from quire_api.wire import IndexMode
from quire_gateway.fleet import Fleet
from quire_gateway.hedge import Winner
from quire_gateway.kv_feed import LOSS_CAUSES
from quire_gateway.warm import Warming
from quire_gateway.workers import RestartCause

_WHO = ("namespace", "deployment")
_MODES: tuple[IndexMode, ...] = get_args(IndexMode)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True, slots=True)
class _Children:
    """One deployment's metrics without their reason labels; looking labels up costs more than counting."""

    first_byte: Histogram
    duration: Histogram
    prompt_tokens: Counter
    cached_tokens: Counter
    output_tokens: Counter
    queued: Histogram


class _ChildrenByLabels(dict[tuple[str, ...], Counter]):
    """A counter's children by their labels: `labels` costs more than counting."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def __missing__(self, labels: tuple[str, ...]) -> Counter:
        child = self[labels] = self._counter.labels(*labels)
        return child


class _FeedCounters(Collector):
    """What the feeds of `fleet` have counted."""

    def __init__(self) -> None:
        self.fleet: Fleet | None = None

    def collect(self) -> Iterator[CounterMetricFamily]:
        losses = CounterMetricFamily(
            "quire_gateway_index_losses",
            "Times that a replica's cache ceased to be known exactly, by cause.",
            labels=(*_WHO, "cause"),
        )
        told = CounterMetricFamily(
            "quire_gateway_index_blocks_told",
            "Blocks that replicas' event streams told of as stored or removed, snapshots included.",
            labels=_WHO,
        )
        for who, deployment in self.fleet.deployments.items() if self.fleet is not None else ():
            for cause in LOSS_CAUSES:
                losses.add_metric((*who, cause), deployment.feed_counts.losses[cause])
            told.add_metric(who, deployment.feed_counts.blocks_told)
        yield losses
        yield told


class Metrics:
    """All metrics; gauges are read from the fleet when somebody asks."""

    def __init__(self, restarts: Mapping[RestartCause, int] = MappingProxyType({})) -> None:
        """restarts: of this worker, before this process was started."""
        self._registry = CollectorRegistry()
        self._counted: list[Counter | Histogram] = []
        """Those that are counted by deployment, and grow."""
        self._requests = _ChildrenByLabels(self._counter("requests", "Requests answered, by status code.", "code"))
        self._refusals = self._counter("refusals", "Requests that the gateway answered with an error itself.", "reason")
        self._picks = _ChildrenByLabels(self._counter("picks", "Choices of a replica, by reason.", "reason"))
        self._misses = _ChildrenByLabels(
            self._counter("prefix_misses", "Prompts not wholly cached where they went, by reason.", "reason")
        )
        self._cached = (self._requests, self._picks, self._misses)
        self._retries = self._counter("retries", "Requests sent to another replica, by what failed.", "cause")
        self._hedges = self._counter(
            "hedges", "Streams asked of a second replica because they were late, by who began first.", "winner"
        )
        self._broken = self._counter("streams_broken", "Answers that broke off after their first byte.", "cause")
        self._moves = self._counter("stream_moves", "Streams continued on another replica, by what failed.", "cause")
        self._ejections = self._counter("ejections", "Replicas left out for answering worse than the others.", "cause")
        self._warmings = self._counter(
            "warmings", "New replicas given their siblings' prefixes, by outcome.", "outcome"
        )
        self._warmed_prefixes = self._counter("warmed_prefixes", "Prefixes that new replicas computed beforehand.")
        self._warmed_tokens = self._counter("warmed_tokens", "Tokens of these prefixes.")
        self._warm_seconds = self._histogram("warming_seconds", "How long new replicas were kept back for that.")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens sent to replicas.")
        self._cached_tokens = self._counter(
            "cached_prompt_tokens", "Prompt tokens believed cached where they were sent."
        )
        self._output_tokens = self._counter("output_tokens", "Tokens that replicas have answered with.")
        self._queued = self._histogram("queue_seconds", "How long requests waited for a replica or their turn.")
        self._key_requests = self._counter("key_requests", "Requests let in, by name of the API key.", "key")
        self._key_refusals = self._counter(
            "key_refusals",
            "Refusals by name of the API key and reason.",
            "key",
            "reason",
        )
        self._key_input = self._counter("key_input_tokens", "Prompt tokens by name of the API key.", "key")
        self._key_output = self._counter("key_output_tokens", "Output tokens by name of the API key.", "key")
        self._first_byte = self._histogram(
            "time_to_first_byte_seconds", "From the whole request to the first body byte."
        )
        self._duration = self._histogram("request_duration_seconds", "From the whole request to the answer's end.")
        self._in_flight = self._gauge("in_flight", "Requests at replicas now.")
        self._held = self._gauge("held", "Requests that wait for a replica or their turn.")
        self._routable = self._gauge("replicas_routable", "Replicas that get requests.")
        self._replicas = self._gauge("replicas", "Replicas in the routing table.")
        self._index = self._gauge("index_blocks", "Distinct blocks in the prefix index.")
        self._index_mode = Gauge(
            "quire_gateway_index_mode",
            "1 for how each replica's cache is known: EXACT (told), DEGRADED (a snapshot is awaited), FALLBACK.",
            (*_WHO, "replica", "mode"),
            registry=self._registry,
        )
        self._replica_blocks = Gauge(
            "quire_gateway_index_replica_blocks",
            "Blocks that each replica holds, or is believed to hold.",
            (*_WHO, "replica"),
            registry=self._registry,
        )
        self._bodies = Gauge(
            "quire_gateway_buffered_body_bytes",
            "Bytes of the bodies of all requests that arrive, wait or are being answered.",
            registry=self._registry,
        )
        self._feeds = _FeedCounters()
        self._registry.register(self._feeds)
        self._stale = Gauge(
            "quire_gateway_routing_table_stale",
            "1 while the newest routing table cannot be used.",
            registry=self._registry,
        )
        restarted = Counter(
            "quire_gateway_worker_restarts",
            "Times that a worker of --workers was started again, by cause: its process had ended, or hung.",
            ("cause",),
            registry=self._registry,
        )
        for cause in get_args(RestartCause):
            restarted.labels(cause).inc(restarts.get(cause, 0))
        self._children: dict[tuple[str, str], _Children] = {}

    def watch_bodies(self, used: Callable[[], int]) -> None:
        """`used` tells how many bytes of bodies there are."""
        self._bodies.set_function(used)

    def of(self, who: tuple[str, str]) -> _Children:
        """The metrics of one deployment, (namespace, name)."""
        children = self._children.get(who)
        if children is None:
            children = self._children[who] = _Children(
                self._first_byte.labels(*who),
                self._duration.labels(*who),
                self._prompt_tokens.labels(*who),
                self._cached_tokens.labels(*who),
                self._output_tokens.labels(*who),
                self._queued.labels(*who),
            )
        return children

    def answered(self, who: tuple[str, str], code: int) -> None:
        self._requests[*who, str(code)].inc()

    def refused(self, who: tuple[str, str], reason: str, key: str) -> None:
        self._refusals.labels(*who, reason).inc()
        if key:
            self._key_refusals.labels(*who, key, reason).inc()

    def served(self, who: tuple[str, str], key: str, input_tokens: int, output_tokens: int) -> None:
        """A request that a replica has seen is over; `key` is the name of its API key."""
        self.of(who).output_tokens.inc(output_tokens)
        if key:
            self._key_requests.labels(*who, key).inc()
            self._key_input.labels(*who, key).inc(input_tokens)
            self._key_output.labels(*who, key).inc(output_tokens)

    def picked(self, who: tuple[str, str], reason: str) -> None:
        self._picks[*who, reason].inc()

    def missed(self, who: tuple[str, str], reason: str) -> None:
        self._misses[*who, reason].inc()

    def retried(self, who: tuple[str, str], cause: str) -> None:
        self._retries.labels(*who, cause).inc()

    def hedged(self, who: tuple[str, str], winner: Winner) -> None:
        self._hedges.labels(*who, winner).inc()

    def ejected(self, who: tuple[str, str], cause: str) -> None:
        self.of(who)
        self._ejections.labels(*who, cause).inc()

    def warmed(self, who: tuple[str, str], warming: Warming) -> None:
        self.of(who)
        self._warmings.labels(*who, warming.outcome).inc()
        self._warmed_prefixes.labels(*who).inc(warming.prefixes)
        self._warmed_tokens.labels(*who).inc(warming.tokens)
        self._warm_seconds.labels(*who).observe(warming.seconds)

    def moved(self, who: tuple[str, str], cause: str) -> None:
        self._moves.labels(*who, cause).inc()

    def broke(self, who: tuple[str, str], cause: str) -> None:
        self._broken.labels(*who, cause).inc()

    def render(self, fleet: Fleet, is_table_stale: bool) -> bytes:
        """The exposition text, gauges read from `fleet` now; of deployments that are gone nothing is left."""
        for who in self._children.keys() - fleet.deployments.keys():
            self._forget(who)
        for gauge in (self._in_flight, self._held, self._routable, self._replicas, self._index):
            gauge.clear()
        self._index_mode.clear()
        self._replica_blocks.clear()
        for who, deployment in fleet.deployments.items():
            self._in_flight.labels(*who).set(deployment.in_flight)
            self._held.labels(*who).set(deployment.held + len(deployment.turns))
            self._routable.labels(*who).set(sum(replica.is_candidate for replica in deployment.replicas.values()))
            self._replicas.labels(*who).set(len(deployment.replicas))
            self._index.labels(*who).set(len(deployment.index))
            for replica in deployment.replicas.values():
                for mode in _MODES:
                    self._index_mode.labels(*who, replica.id, mode).set(replica.index_mode == mode)
                self._replica_blocks.labels(*who, replica.id).set(deployment.index.blocks_of(replica.id))
        self._feeds.fleet = fleet
        self._stale.set(is_table_stale)
        return generate_latest(self._registry)

    def _forget(self, who: tuple[str, str]) -> None:
        del self._children[who]
        for cached in self._cached:
            for labels in [labels for labels in cached if labels[: len(_WHO)] == who]:
                del cached[labels]
        for metric in self._counted:
            metric.remove_by_labels(dict(zip(_WHO, who, strict=True)))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        counter = Counter(f"quire_gateway_{name}", text, (*_WHO, *labels), registry=self._registry)
        self._counted.append(counter)
        return counter

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"quire_gateway_{name}", text, _WHO, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        histogram = Histogram(f"quire_gateway_{name}", text, _WHO, buckets=_SECONDS, registry=self._registry)
        self._counted.append(histogram)
        return histogram
