"""How others choose a replica: pure, after their sources, for comparison.

KubeAI, `internal/loadbalancer/{balance_chwbl,group}.go` and `api/k8s/v1/model_types.go`: consistent hashing with
bounded loads. Key: the first 100 characters of the first user message; a ring with 256 virtual nodes a replica;
clockwise to the first replica whose load, the request included, is at most (total + 1) / n x 1.25; the first on the
way if none is.

llm-d, `pkg/epp/config/loader/defaults.go` and the plugins under `framework/plugins`: sum of queue-scorer x 2,
kv-cache-utilization-scorer x 2 and prefix-cache-scorer x 3, each in 0..1; the maximum wins, ties at random. Queue and
KV usage are scraped; prefixes are guessed from what was sent: chained hashes of 16-token blocks, at most 256
of a prompt, in an LRU of the replica's number of blocks. Matching stops at the first block that nobody has, so that a
replica may be credited blocks behind a gap, as theirs.
"""

import random
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

VIRTUAL_NODES = 256
LOAD_FACTOR = 1.25
QUEUE_WEIGHT, KV_WEIGHT, PREFIX_WEIGHT = 2.0, 2.0, 3.0
MOST_PREFIX_BLOCKS = 256
SCRAPE_S = 0.05
"""`--refresh-metrics-interval` of the endpoint picker."""


class BoundedRing:
    """Consistent hashing with bounded loads over `count` replicas."""

    def __init__(self, count: int) -> None:
        self._ring = sorted(
            (_hash(b"%d-%d" % (replica, node)), replica) for replica in range(count) for node in range(VIRTUAL_NODES)
        )
        self._points = [point for point, _ in self._ring]
        self._count = count

    def pick(self, key: bytes, in_flight: Sequence[int]) -> int:
        total = sum(in_flight)
        bound = (total + 1) / self._count * LOAD_FACTOR
        start = bisect_left(self._points, _hash(key))
        for step in range(len(self._ring)):
            replica = self._ring[(start + step) % len(self._ring)][1]
            if in_flight[replica] + 1 <= bound or not total:
                return replica
        return self._ring[start % len(self._ring)][1]


@dataclass(frozen=True, slots=True)
class Scraped:
    """What the endpoint picker last read from one replica's metrics."""

    queue: int = 0
    kv_usage: float = 0.0


class ApproximatePrefixes:
    """Which prompt blocks were sent where, an LRU of `capacity` blocks each."""

    def __init__(self, count: int, capacity: int) -> None:
        self._sent: list[OrderedDict[bytes, None]] = [OrderedDict() for _ in range(count)]
        self._capacity = capacity

    def scores(self, keys: Sequence[bytes]) -> list[float]:
        """Matched share of the first 256 blocks, for each replica."""
        keys = keys[:MOST_PREFIX_BLOCKS]
        found = [list(map(sent.__contains__, keys)) for sent in self._sent]
        end = next((depth for depth, at in enumerate(zip(*found, strict=True)) if not any(at)), len(keys))
        return [sum(at[:end]) / len(keys) if keys else 0.0 for at in found]

    def add(self, replica: int, keys: Sequence[bytes]) -> None:
        sent = self._sent[replica]
        for key in keys[:MOST_PREFIX_BLOCKS]:
            sent[key] = None
            sent.move_to_end(key)
        while len(sent) > self._capacity:
            sent.popitem(last=False)


def queue_scores(queues: Sequence[int]) -> list[float]:
    """(max - q) / (max - min); all alike: 1."""
    least, most = min(queues), max(queues)
    if least == most:
        return [1.0] * len(queues)
    return [(most - queue) / (most - least) for queue in queues]


def pick_llm_d(prefix: Sequence[float], scraped: Sequence[Scraped], rng: random.Random) -> int:
    """The replica with the largest weighted sum, one of them at random if several have it."""
    queues = queue_scores([each.queue for each in scraped])
    totals = [
        QUEUE_WEIGHT * queue + KV_WEIGHT * (1.0 - each.kv_usage) + PREFIX_WEIGHT * share
        for queue, each, share in zip(queues, scraped, prefix, strict=True)
    ]
    best = max(totals)
    return rng.choice([replica for replica, total in enumerate(totals) if total == best])


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")
