"""Which replicas are Ready, as a watch tells it: no moment between two looks is missed."""

import json
import subprocess
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from client import Client

LABEL = "quire.dev/deployment"


@dataclass
class Replicas:
    """The pods of a namespace that have been Ready, as endpoints and budgets count them, and are not on their way out.

    Who misses a probe is still among them: on a busy machine that happens to pods that nobody touches.
    """

    on_leaving: Callable[[str], None]
    """Called with the name of a pod that is deleted, while it still runs."""
    fewest: dict[str, int] = field(default_factory=dict)
    """Of each deployment the fewest that were left when one of its replicas was let go."""
    left: Counter[str] = field(default_factory=Counter)
    """How many pods of each deployment were deleted."""
    _ready: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _leaving: set[str] = field(default_factory=set)

    def ready(self, deployment: str) -> frozenset[str]:
        return frozenset(self._ready[deployment].copy())

    def follow(self, lines: Iterable[str]) -> None:
        """Take in the events that `kubectl get --watch --output-watch-events -o json` prints, each a line."""
        for line in lines:
            told = json.loads(line)
            self._take(told["object"], is_there=told["type"] != "DELETED")

    def _take(self, pod: dict[str, Any], is_there: bool) -> None:
        metadata, conditions = pod["metadata"], pod["status"].get("conditions", [])
        name, owner = metadata["name"], metadata["labels"][LABEL]
        ready = self._ready[owner]
        is_leaving = not is_there or "deletionTimestamp" in metadata
        is_ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
        if is_ready and not is_leaving:
            ready.add(name)
        elif is_leaving and name in ready:
            ready.discard(name)
            self.fewest[owner] = min(self.fewest.get(owner, len(ready)), len(ready))
        if is_leaving and name not in self._leaving:
            self._leaving.add(name)
            self.left[owner] += 1
            self.on_leaving(name)


@contextmanager
def watched(cluster: Client, namespace: str, on_leaving: Callable[[str], None]) -> Iterator[Replicas]:
    """Replicas, followed while the block runs."""
    arguments = ("get", "pods", "-n", namespace, "-l", LABEL, "--watch", "--output-watch-events", "-o", "json")
    watch = subprocess.Popen(
        [*cluster.inside, "kubectl", *arguments], env=cluster.environment, stdout=subprocess.PIPE, text=True
    )
    assert watch.stdout
    replicas = Replicas(on_leaving)
    reader = threading.Thread(target=replicas.follow, args=(watch.stdout,), daemon=True)
    reader.start()
    try:
        yield replicas
        assert watch.poll() is None, "the watch has ended"
        assert reader.is_alive(), "what the watch tells is not understood"
    finally:
        watch.kill()
        watch.wait()
        reader.join()
