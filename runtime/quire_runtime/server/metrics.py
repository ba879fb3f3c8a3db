"""What the server measures and what it tells Prometheus: `quire:*`, and as `vllm:*` what means the same there.

Handlers only count; names, labels and text appear when somebody scrapes.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from quire_runtime.engine.messages import STEP_SIZE_BOUNDS, EngineReady, EngineStats

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
ITL_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.015,
    0.02,
    0.025,
    0.03,
    0.04,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    1.0,
    2.5,
)
E2E_SECONDS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0)
TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
CHOICES = (1.0, 2.0, 5.0, 10.0, 20.0)
OUTCOMES = ("stop", "length", "abort", "error")
REJECTIONS = ("queue_full", "context_length_exceeded", "kv_cache_too_small", "draining", "invalid")
"""Shown from the start, as the outcomes are: a rate needs the sample before the first one."""
Sample = tuple[Mapping[str, str], float]


class Histogram:
    """Counts by upper bound; `observe` costs well under a microsecond."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    @classmethod
    def of(cls, bounds: Sequence[float], counts: Sequence[int], total: float) -> "Histogram":
        """One that somebody else has counted; no counts: nothing was observed."""
        histogram = cls(bounds)
        histogram._counts = list(counts) or histogram._counts
        histogram._sum = total
        return histogram

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def snapshot(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound, and the sum."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
        return buckets, self._sum


class Metrics:
    """The server's own counts. Times in seconds."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generated_tokens = 0
        self.rejections: Counter[str] = Counter(dict.fromkeys(REJECTIONS, 0))
        self.outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.ttft = Histogram(SECONDS)
        self.itl = Histogram(ITL_SECONDS)
        self.tpot = Histogram(ITL_SECONDS)
        self.e2e = Histogram(E2E_SECONDS)
        self.queue_time = Histogram(E2E_SECONDS)
        self.prefill_time = Histogram(E2E_SECONDS)
        self.decode_time = Histogram(E2E_SECONDS)
        self.inference_time = Histogram(E2E_SECONDS)
        self.prompt_lengths = Histogram(TOKENS)
        self.output_lengths = Histogram(TOKENS)
        self.choices = Histogram(CHOICES)
        self.max_tokens = Histogram(TOKENS)


class Exposition(Collector):
    """Renders server counts and the engine's statistics.

    The engine's statistics and facts are read through callables at each scrape: there is none while it loads.
    """

    def __init__(self, metrics: Metrics, model_name: str) -> None:
        self._metrics = metrics
        self._labels = {"model_name": model_name, "engine": "0"}
        self.stats: EngineStats = EngineStats()
        self.info: EngineReady | None = None
        self.heartbeat_age_s = 0.0
        self.in_flight = 0

    def collect(self) -> Iterator[Metric]:
        yield from self._engine_gauges()
        yield from self._engine_counters()
        yield from self._server_counters()
        yield from self._histograms()

    def _engine_gauges(self) -> Iterator[Metric]:
        stats, info = self.stats, self.info
        usage = stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
        yield from self._both(
            GaugeMetricFamily, "num_requests_running", "Sequences in the running batch.", stats.num_running
        )
        yield from self._both(
            GaugeMetricFamily, "num_requests_waiting", "Requests that wait for a place.", stats.num_waiting
        )
        reasons = {"capacity": stats.num_waiting, "deferred": 0}
        for prefix in ("quire", "vllm"):
            yield self._one(
                GaugeMetricFamily,
                f"{prefix}:num_requests_waiting_by_reason",
                "Requests that wait, by what for; none is ever deferred.",
                [({**self._labels, "reason": reason}, waiting) for reason, waiting in reasons.items()],
            )
        yield from self._both(
            GaugeMetricFamily, "kv_cache_usage_perc", "Share of KV-cache blocks in use, 0 to 1.", usage
        )
        if info is not None:
            facts = {"block_size": str(info.block_size), "num_gpu_blocks": str(info.num_blocks)}
            yield from self._both(GaugeMetricFamily, "cache_config_info", "Shape of the KV cache.", 1, facts)
        adapters = {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
        yield from self._both(GaugeMetricFamily, "lora_requests_info", "Adapters in use.", time.time(), adapters)
        ours: dict[str, tuple[str, float]] = {
            "kv_waste_ratio": ("Allocated but unused KV-cache slots over allocated ones.", stats.kv_waste_ratio),
            "kv_blocks_used": ("KV-cache blocks held by requests.", stats.kv_blocks_used),
            "kv_blocks_total": ("KV-cache blocks.", stats.kv_blocks_total),
            "engine_heartbeat_age_seconds": ("Time since the engine's loop last spoke.", self.heartbeat_age_s),
            "http_requests_in_flight": ("Generation requests being answered.", self.in_flight),
        }
        for name, (text, value) in ours.items():
            yield self._one(GaugeMetricFamily, f"quire:{name}", text, [(self._labels, value)])
        if info is not None:
            phases = [({**self._labels, "phase": phase}, seconds) for phase, seconds in info.startup_s.items()]
            yield self._one(GaugeMetricFamily, "quire:startup_seconds", "Engine start by phase.", phases)

    def _engine_counters(self) -> Iterator[Metric]:
        stats = self.stats
        shared: dict[str, tuple[str, float]] = {
            "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", stats.prefix_queries_tokens),
            "prefix_cache_hits": ("Prompt tokens found in the prefix cache.", stats.prefix_hits_tokens),
            "num_preemptions": ("Sequences put back to be computed again.", stats.num_preemptions),
            "corrupted_requests": ("Requests ended by a value that is not a number.", stats.num_corrupted),
        }
        for name, (text, value) in shared.items():
            yield from self._both(CounterMetricFamily, name, text, value)
        ours: dict[str, tuple[str, float]] = {
            "engine_steps": ("Engine steps.", stats.steps),
            "engine_step_tokens": ("Tokens computed in engine steps.", stats.step_tokens),
            "engine_step_seconds": ("Time spent in engine steps.", stats.step_seconds),
            "engine_python_seconds": ("Of that, time of the host's own work.", stats.python_seconds),
        }
        for name, (text, value) in ours.items():
            yield self._one(CounterMetricFamily, f"quire:{name}", text, [(self._labels, value)])

    def _server_counters(self) -> Iterator[Metric]:
        metrics = self._metrics
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens of requests that were begun.", metrics.prompt_tokens),
            ("prompt_tokens_cached", "Of those, found in the prefix cache.", metrics.cached_tokens),
            ("generation_tokens", "Tokens generated.", metrics.generated_tokens),
        ):
            yield from self._both(CounterMetricFamily, name, text, value)
        for prefix in ("quire", "vllm"):
            yield self._one(
                CounterMetricFamily,
                f"{prefix}:request_success",
                "Choices that ended, by reason.",
                [({**self._labels, "finished_reason": reason}, n) for reason, n in metrics.outcomes.items()],
            )
            yield self._one(
                CounterMetricFamily,
                f"{prefix}:admission_rejections",
                "Requests the engine refused, by reason.",
                [({**self._labels, "reason": reason}, n) for reason, n in metrics.rejections.items()],
            )

    def _histograms(self) -> Iterator[Metric]:
        metrics, stats = self._metrics, self.stats
        iterations = Histogram.of([float(bound) for bound in STEP_SIZE_BOUNDS], stats.step_sizes, stats.step_tokens)
        for name, text, histogram in (
            ("time_to_first_token_seconds", "From the request's arrival to its first token.", metrics.ttft),
            ("inter_token_latency_seconds", "Between two tokens of a choice.", metrics.itl),
            ("request_time_per_output_token_seconds", "Mean time per token after the first, by request.", metrics.tpot),
            ("e2e_request_latency_seconds", "From the request's arrival to its last token.", metrics.e2e),
            ("request_queue_time_seconds", "From the request's arrival to its first step.", metrics.queue_time),
            ("request_prefill_time_seconds", "From the first step to the first token.", metrics.prefill_time),
            ("request_decode_time_seconds", "From the first token to the last.", metrics.decode_time),
            ("request_inference_time_seconds", "From the first step to the last token.", metrics.inference_time),
            ("iteration_tokens_total", "Tokens computed in an engine step.", iterations),
            ("request_prompt_tokens", "Length of prompts.", metrics.prompt_lengths),
            ("request_generation_tokens", "Length of outputs.", metrics.output_lengths),
            ("request_params_n", "Choices asked for.", metrics.choices),
            ("request_params_max_tokens", "max_tokens asked for.", metrics.max_tokens),
        ):
            buckets, total = histogram.snapshot()
            for prefix in ("quire", "vllm"):
                family = HistogramMetricFamily(f"{prefix}:{name}", text, labels=list(self._labels))
                family.add_metric(list(self._labels.values()), buckets, total)
                yield family

    def _both(
        self,
        kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        text: str,
        value: float,
        labels: Mapping[str, str] | None = None,
    ) -> Iterator[Metric]:
        for prefix in ("quire", "vllm"):
            yield self._one(kind, f"{prefix}:{name}", text, [({**self._labels, **(labels or {})}, value)])

    def _one(
        self,
        kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        text: str,
        samples: Sequence[Sample],
    ) -> Metric:
        labels = list(samples[0][0]) if samples else list(self._labels)
        family = kind(name, text, labels=labels)
        for values, number in samples:
            family.add_metric(list(values.values()), number)
        return family


def registry(exposition: Exposition) -> CollectorRegistry:
    """A registry of its own: nothing global, so that several servers can live in one process."""
    own = CollectorRegistry(auto_describe=False)
    own.register(exposition)
    ProcessCollector(registry=own)
    return own
