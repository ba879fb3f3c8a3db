"""KubeAI's scaling law, pure, for comparison.

`internal/modelautoscaler/autoscaler.go`, `internal/movingaverage/simple.go` and `internal/config/system.go`: each
`interval` (10 s) the leader adds up the requests in flight at all proxies, held ones included, into a ring of
ceil(timeWindow / interval) = 60 values that starts with zeros; replicas = ceil(mean / targetRequests). Up is at once;
down only after ceil(scaleDownDelay / interval) decisions in a row that asked for fewer. From zero the proxy itself sets
one replica and holds the request.
"""

from math import ceil

INTERVAL_S = 10.0
TIME_WINDOW_S = 600.0


class KubeAILaw:
    """Call `decide` every `INTERVAL_S`."""

    def __init__(
        self, target_requests: int, min_replicas: int, max_replicas: int, scale_down_delay_s: float = 30.0
    ) -> None:
        self._target = target_requests
        self._min, self._max = min_replicas, max_replicas
        self._history = [0.0] * ceil(TIME_WINDOW_S / INTERVAL_S)
        self._at = 0
        self._needed_downs = ceil(scale_down_delay_s / INTERVAL_S)
        self._downs = 0

    def decide(self, requests: int, replicas: int) -> int:
        """Replicas from now on, with `requests` in flight or held and `replicas` wanted so far."""
        self._history[self._at] = float(requests)
        self._at = (self._at + 1) % len(self._history)
        mean = sum(self._history) / len(self._history)
        desired = min(max(ceil(mean / self._target), self._min), self._max)
        if desired >= replicas:
            self._downs = 0
            return desired
        self._downs += 1
        return desired if self._downs > self._needed_downs else replicas
