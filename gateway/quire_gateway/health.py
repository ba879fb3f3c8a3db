"""Whether a replica may be sent requests: one token must come out of it first, and a failing one is ejected.

    waiting --probe ok--> routable --failure--> waiting (probe at once, then with back-off)

`Health` is the state machine, with the time given from outside; `probe` asks for the token.
"""

from dataclasses import dataclass

import orjson

from quire_api import wire
from quire_gateway.errors import JSON
from quire_gateway.request import Headers
from quire_gateway.upstream import UpstreamFailure, UpstreamPool

_FORGET_EJECTIONS_S = 60.0


@dataclass(slots=True)
class Health:
    """One replica's state. Times are seconds on any one clock.

    A broken connection ejects at once; answers with 502 or 503 do after `tolerated` of them in a row. Probing starts
    immediately, and later for a replica that was ejected again within a minute.
    """

    tolerated: int = 3
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0
    is_routable: bool = False
    reason: str = "Starting: not probed yet"
    generation: int = 0
    """Counts how often it became routable: who excluded an earlier generation may try this one."""
    probe_at: float = 0.0
    _failures: int = 0
    _failed_probes: int = 0
    _ejections: int = 0
    _ejected_at: float = float("-inf")

    def probe_succeeded(self) -> None:
        self.is_routable = True
        self.generation += 1
        self.reason = ""
        self._failures = 0
        self._failed_probes = 0

    def probe_failed(self, now: float, why: str) -> None:
        delay = min(self.longest_delay_s, self.first_delay_s * 2.0 ** min(self._failed_probes, 16))
        self._failed_probes += 1
        self.probe_at = now + delay
        self.reason = f"ProbeFailed: {why}"

    def warming(self) -> None:
        """A token came out of it; its cache is being filled before it gets requests."""
        self.reason = "Warming: it computes the prefixes that its siblings are asked for most"

    def answered(self) -> None:
        """A request was answered."""
        self._failures = 0

    def request_failed(self, now: float, why: str, *, is_lost: bool) -> bool:
        """A request failed; `is_lost` when the connection broke. True if this ejected the replica."""
        self._failures += 1
        if not self.is_routable or not (is_lost or self._failures >= self.tolerated):
            return False
        self._ejections = self._ejections + 1 if now - self._ejected_at < _FORGET_EJECTIONS_S else 0
        self._ejected_at = now
        again = min(self._ejections, 16)
        self.eject(now, why, min(self.longest_delay_s, self.first_delay_s * 2.0**again) if again else 0.0)
        return True

    def eject(self, now: float, why: str, for_s: float) -> None:
        """Send it nothing, and probe it no sooner than in `for_s`."""
        self.is_routable = False
        self.reason = f"Ejected: {why}"
        self.probe_at = now + for_s


async def probe(pool: UpstreamPool, model: str, internal_key: str, timeout_s: float) -> None:
    """Let the replica at `pool` write one token.

    Raises:
        UpstreamFailure: it did not.
    """
    body = orjson.dumps({"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0})
    headers = [(b"content-type", JSON), *internal_headers(internal_key)]
    status, answer = await pool.fetch(
        "POST", "/v1/completions", headers=headers, body=body, timeout_s=timeout_s, max_bytes=1 << 20
    )
    if status != 200:
        text = answer[:200].decode(errors="replace")
        raise UpstreamFailure("malformed", f"asked for one token it answered {status}: {text}")


def internal_headers(internal_key: str) -> Headers:
    """What proves to an engine that its own gateway speaks; nothing without a key."""
    return [(wire.HEADER_INTERNAL_KEY.encode(), internal_key.encode())] if internal_key else []
