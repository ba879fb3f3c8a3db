"""A pod that has Python and nothing to do, and what it reaches."""

from collections.abc import Iterable
from typing import Any

from client import PLACE, SYSTEM, VISITOR, Client, eventually
from scenario import GATEWAY, apply, lacks

CLOSED_S = 60.0
"""After so long a network enforces policies or does not."""
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
    print("reached")
except OSError as error:
    print("kept out:", error)
"""


def place(cluster: Client, *namespaces: str, claim: str = "") -> None:
    """One in each namespace, with the volume of `claim`; it runs once this returns."""
    (gateway, *_) = cluster.pods(SYSTEM, GATEWAY)
    for namespace in namespaces:
        # Pods are refused until the controller has made it.
        eventually(lambda namespace=namespace: cluster.get("serviceaccount", "default", namespace), "an account")
        apply(cluster, _pod(namespace, gateway["spec"]["containers"][0]["image"], claim))
    for namespace in namespaces:
        cluster.kubectl("wait", f"pod/{VISITOR}", "-n", namespace, "--for=condition=Ready", "--timeout=120s")


def reaches(cluster: Client, namespace: str, whom: dict[str, Any], port: int = 8000, pod: str = VISITOR) -> bool:
    """Whether a connection from the pod to the address of pod `whom` comes about."""
    address = whom["status"]["podIP"]
    said = cluster.kubectl("exec", pod, "-n", namespace, "--", "python", "-c", CONNECT, address, str(port))
    assert said.startswith(("reached", "kept out")), said
    return said.startswith("reached")


def wait_until_kept_out(cluster: Client, whom: dict[str, Any], namespaces: Iterable[str], port: int = 8000) -> None:
    """Until no bystander reaches pod `whom`; a scenario is skipped where the network enforces no policies."""
    deadline = {} if cluster.is_own else {"deadline_s": CLOSED_S}
    try:
        eventually(
            lambda: not any(reaches(cluster, place, whom, port) for place in namespaces), "bystanders out", **deadline
        )
    except AssertionError:
        lacks(cluster, "the cluster's network enforces no policies")


def _pod(namespace: str, image: str, claim: str = "") -> dict[str, Any]:
    confined = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "python",
        "image": image,
        "command": ["python", "-c", "import signal; signal.pause()"],
        "securityContext": confined,
        "volumeMounts": [{"name": "place", "mountPath": PLACE}],
    }
    volume = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": VISITOR, "namespace": namespace},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"fsGroup": 65532},
            "containers": [container],
            "volumes": [{"name": "place", **volume}],
        },
    }
