"""Which replicas answer so much worse than the others that requests should go elsewhere for a while. Pure.

Names and rules are those of Envoy's outlier detection (consecutive 5xx, failure percentage, base ejection time, max
ejection percent), with two changes. Latency counts too: a replica on a card that throttles answers everything, late.
And a replica is an outlier only beside others that do better: a request that fails everywhere is nobody's fault, and to
eject one after the other for it would be an outage.

    routable --outlier--> ejected for base x times --one token comes out of it--> routable
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

Cause = Literal["consecutive_5xx", "failure_percentage", "ttft", "itl"]

WINDOW_S = 30.0
_MOST_SAMPLES = 256
_LEAST_WORK = 256
"""Tokens: below this a first byte is late for other reasons than its prompt."""


@dataclass(frozen=True, slots=True)
class OutlierRules:
    """Percentages are of 100, times seconds, volumes samples of the latest `WINDOW_S`."""

    consecutive_5xx: int = 5
    failure_percentage: float = 50.0
    failure_volume: int = 20
    latency_factor: float = 4.0
    """Times the median of the other replicas' medians."""
    latency_volume: int = 20
    ttft_floor_s: float = 0.5
    itl_floor_s: float = 0.05
    """Faster than that is never too slow, whatever the others do."""
    minimum_hosts: int = 3
    """Replicas with enough samples, the slow one included, before latencies are compared."""
    max_ejection_percent: float = 34.0
    base_ejection_time_s: float = 15.0
    max_ejection_time_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What one routable replica did lately. Latencies are medians; None: too few samples, or none."""

    replica: str
    requests: int = 0
    failures: int = 0
    consecutive_5xx: int = 0
    ttft_s: float | None = None
    ttft_s_per_token: float | None = None
    """Over the prompt tokens that it had to prefill before: its queue's and the request's own."""
    itl_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ejection:
    replica: str
    cause: Cause
    why: str


def find_outliers(seen: Sequence[Seen], ejected: int, rules: OutlierRules) -> list[Ejection]:
    """Whom to eject now, the worst first.

    seen: the routable replicas. ejected: how many others are out already, for whatever reason. One may always go if
    another stays; beyond that no more than `max_ejection_percent` of all are out at a time, and none if that is 0.
    """
    found = [each for one in seen if (each := _judge(one, [other for other in seen if other is not one], rules))]
    total = len(seen) + ejected
    at_a_time = max(1, int(total * rules.max_ejection_percent / 100)) if rules.max_ejection_percent else 0
    most = min(at_a_time - ejected, len(seen) - 1)
    return [ejection for _, ejection in sorted(found, key=lambda each: -each[0])[: max(most, 0)]]


def ejection_time_s(times: int, rules: OutlierRules) -> float:
    """How long a replica stays out that is ejected for the `times`-th time in a row."""
    return min(rules.base_ejection_time_s * times, rules.max_ejection_time_s)


def _judge(one: Seen, others: Sequence[Seen], rules: OutlierRules) -> tuple[float, Ejection] | None:
    """How bad it is (failures before slowness), and why."""
    if not others:
        return None
    share = _failure_percentage(one)
    if 2 * sum(_is_failing(other, rules) for other in others) < len(others):
        if one.consecutive_5xx >= rules.consecutive_5xx:
            why = f"its last {one.consecutive_5xx} answers were errors (5xx)"
            return 1e6 + share, Ejection(one.replica, "consecutive_5xx", why)
        if one.requests >= rules.failure_volume and share >= rules.failure_percentage:
            why = f"{share:.0f} % of its answers were errors (5xx)"
            return 1e6 + share, Ejection(one.replica, "failure_percentage", why)
    slow = _times_slower(one.ttft_s_per_token, [other.ttft_s_per_token for other in others], rules)
    if slow > rules.latency_factor and (one.ttft_s or 0.0) > rules.ttft_floor_s:
        why = f"its first tokens take {slow:.1f} times as long as the others'"
        return slow, Ejection(one.replica, "ttft", why)
    slow = _times_slower(one.itl_s, [other.itl_s for other in others], rules)
    if slow > rules.latency_factor and (one.itl_s or 0.0) > rules.itl_floor_s:
        return slow, Ejection(one.replica, "itl", f"its tokens take {slow:.1f} times as long as the others'")
    return None


def _is_failing(seen: Seen, rules: OutlierRules) -> bool:
    """On the way to be an outlier itself, as it were: half as bad."""
    is_row = 2 * seen.consecutive_5xx >= rules.consecutive_5xx
    return is_row or 2 * _failure_percentage(seen) >= rules.failure_percentage


def _failure_percentage(seen: Seen) -> float:
    return 100 * seen.failures / seen.requests if seen.requests else 0.0


def _times_slower(own: float | None, others: Sequence[float | None], rules: OutlierRules) -> float:
    known = [each for each in others if each is not None]
    if own is None or len(known) + 1 < rules.minimum_hosts:
        return 0.0
    return own / max(median(known), 1e-9)


@dataclass(slots=True)
class Observed:
    """One replica's answers as they come; O(1) each, times on any one clock."""

    _answers: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=_MOST_SAMPLES))
    _firsts: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=_MOST_SAMPLES))
    _paces: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MOST_SAMPLES))
    _consecutive: int = 0
    _times: int = 0
    _ejected_at: float = float("-inf")

    def answered(self, status: int, now: float) -> None:
        """A request was answered with `status`."""
        is_failure = status >= 500
        self._answers.append((now, is_failure))
        self._consecutive = self._consecutive + 1 if is_failure else 0

    def first_token(self, took_s: float, work_tokens: int, now: float) -> None:
        """A stream began `took_s` after it was sent; before it `work_tokens` prompt tokens were to be prefilled."""
        self._firsts.append((now, took_s, took_s / max(work_tokens, _LEAST_WORK)))

    def paced(self, itl_s: float, now: float) -> None:
        """A stream's mean time between tokens."""
        self._paces.append((now, itl_s))

    def seen(self, replica: str, now: float, rules: OutlierRules) -> Seen:
        """What it did in the latest `WINDOW_S`."""
        for samples in (self._answers, self._firsts, self._paces):
            while samples and now - samples[0][0] > WINDOW_S:
                samples.popleft()  # type: ignore[attr-defined]
        has_firsts, has_paces = (len(each) >= rules.latency_volume for each in (self._firsts, self._paces))
        return Seen(
            replica,
            len(self._answers),
            sum(is_failure for _, is_failure in self._answers),
            self._consecutive,
            median(took for _, took, _ in self._firsts) if has_firsts else None,
            median(each for _, _, each in self._firsts) if has_firsts else None,
            median(itl for _, itl in self._paces) if has_paces else None,
        )

    def ejected(self, now: float, rules: OutlierRules) -> float:
        """It is: for how many seconds. What it did before is forgotten when it comes back."""
        in_a_row = now - self._ejected_at <= rules.max_ejection_time_s
        self._times = self._times + 1 if in_a_row else 1
        self._ejected_at = now
        self._consecutive = 0
        for samples in (self._answers, self._firsts, self._paces):
            samples.clear()  # type: ignore[attr-defined]
        return ejection_time_s(self._times, rules)
