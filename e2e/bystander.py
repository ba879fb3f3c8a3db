"""A pod that has Python and nothing to do, and what it reaches."""

from typing import Any

from client import SYSTEM, Client
from scenario import GATEWAY, apply

NAME = "bystander"
CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).close()
    print("reached")
except OSError as error:
    print("kept out:", error)
"""


def place(cluster: Client, *namespaces: str) -> None:
    """One in each namespace; it runs once this returns."""
    (gateway, *_) = cluster.pods(SYSTEM, GATEWAY)
    for namespace in namespaces:
        apply(cluster, _pod(namespace, gateway["spec"]["containers"][0]["image"]))
    for namespace in namespaces:
        cluster.kubectl("wait", f"pod/{NAME}", "-n", namespace, "--for=condition=Ready", "--timeout=120s")


def reaches(cluster: Client, namespace: str, whom: dict[str, Any], port: int = 8000, pod: str = NAME) -> bool:
    """Whether a connection from the pod to the address of pod `whom` comes about."""
    address = whom["status"]["podIP"]
    said = cluster.kubectl("exec", pod, "-n", namespace, "--", "python", "-c", CONNECT, address, str(port))
    assert said.startswith(("reached", "kept out")), said
    return said.startswith("reached")


def _pod(namespace: str, image: str) -> dict[str, Any]:
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
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "namespace": namespace},
        "spec": {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 0, "containers": [container]},
    }
