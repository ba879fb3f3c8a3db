"""What scenarios share: applying and waiting, streams under way, one question."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def apply(cluster: Any, resource: dict[str, Any]) -> None:
    cluster.kubectl("apply", "-f", "-", given=resource)


def serve(cluster: Any, namespace: str, soon: Callable[..., Any], resource: dict[str, Any]) -> str:
    """Apply, wait until Ready; the served name."""
    apply(cluster, resource)
    name = resource["metadata"]["name"]
    wanted = resource["spec"].get("replicas", 1)
    soon(lambda: cluster.get("llmd", name, namespace).get("status", {}).get("readyReplicas") == wanted, "replicas")
    soon(lambda: cluster.ready(name, namespace)[0] == "True", "Ready")
    return str(resource["spec"]["model"]["servedNames"][0])


@contextmanager
def load(cluster: Any, model: str, folder: Path, clients: int = 3) -> Iterator[dict[str, Any]]:
    """Streams while the block runs; afterwards the box holds how many were answered and what failed."""
    stop = folder / "stop"
    command = [*cluster.layout.inside, sys.executable, str(Path(__file__).with_name("load.py"))]
    process = subprocess.Popen(
        [*command, cluster.gateway, model, str(clients), str(stop)], stdout=subprocess.PIPE, text=True
    )
    seen: dict[str, Any] = {}
    try:
        yield seen
        stop.touch()
        seen |= json.loads(process.communicate(timeout=180)[0])
    finally:
        process.kill()
        process.wait()


def ask(cluster: Any, model: str) -> str:
    """One stream through the gateway's Service, as it came."""
    body = json.dumps({"model": model, "prompt": "Once", "max_tokens": 8, "stream": True})
    answer: str = cluster.run(
        *("curl", "-sN", "--max-time", "100", f"{cluster.gateway}/completions"),
        *("-H", "content-type: application/json", "-d", body),
    )
    return answer
