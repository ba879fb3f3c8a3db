"""How long an applied resource takes to its first token, stage by stage, images present."""

import json
import subprocess
import threading
import time

from scenario import apply

STAGES = {
    "pod exists": lambda pod: True,
    "scheduled": lambda pod: has(pod, "PodScheduled"),
    "engine's container runs": lambda pod: any(
        "running" in status["state"] for status in pod["status"].get("containerStatuses", [])
    ),
    "engine ready": lambda pod: has(pod, "ContainersReady"),
    "routable": lambda pod: has(pod, "quire.dev/routable"),
}


def has(pod, kind: str) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(condition["type"] == kind and condition["status"] == "True" for condition in conditions)


def test_an_applied_resource_gives_its_first_token(cluster, namespace, tiny, soon, record):
    resource = tiny()
    seen: dict[str, float] = {}
    watch = subprocess.Popen(
        [*cluster.inside, "kubectl", "get", "pods", "-n", namespace, "--watch", "-o", "json"],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    reader = threading.Thread(target=follow, args=(watch, seen), daemon=True)
    reader.start()
    asking = subprocess.Popen(
        [
            *cluster.inside,
            *cluster.script("first_token.py", cluster.gateway, resource["spec"]["model"]["servedNames"][0]),
        ],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(2)
        start = time.time()
        apply(cluster, resource)
        applied = time.time()
        at = float(asking.communicate(timeout=330)[0])
        # Gateways route as soon as their probe is answered; the operator writes the pod's condition after that.
        soon(lambda: seen.keys() == STAGES.keys(), "every stage")
    finally:
        for process in (watch, asking):
            process.kill()
            process.wait()
    record("kubectl apply returns", applied - start)
    for stage, moment in sorted({**seen, "first token": at}.items(), key=lambda entry: entry[1]):
        record(f"apply -> {stage}", moment - start)


def follow(watch: subprocess.Popen[str], seen: dict[str, float]) -> None:
    """Note when a pod was first seen in each stage."""
    decoder, text = json.JSONDecoder(), ""
    for line in watch.stdout or ():
        text += line
        if line != "}\n":
            continue
        pod, _ = decoder.raw_decode(text)
        text = ""
        for stage, is_reached in STAGES.items():
            if is_reached(pod):
                seen.setdefault(stage, time.time())
