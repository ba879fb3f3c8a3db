"""Network policies, enforced on the node: who reaches an engine, and who does not."""

from typing import Any

from client import SYSTEM
from scenario import GATEWAY, apply, ask, serve

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 8000), timeout=5).close()
    print("reached")
except OSError as error:
    print("kept out:", error)
"""


def test_gateways_and_the_named_monitoring_reach_an_engine_and_nobody_else(
    node, namespace, new_namespace, tiny, soon, install
):
    monitoring, elsewhere = new_namespace(), new_namespace()
    bystanders = (namespace, monitoring, elsewhere)
    (gateway, *_) = node.pods(SYSTEM, GATEWAY)
    for place in bystanders:
        apply(node, bystander(place, gateway["spec"]["containers"][0]["image"]))
    model = serve(node, soon, tiny())
    (engine,) = node.pods(namespace)
    for place in bystanders:
        node.kubectl("wait", "pod/bystander", "-n", place, "--for=condition=Ready", "--timeout=120s")

    def reaches(place: str, whom: dict[str, Any], pod: str = "bystander") -> bool:
        address = whom["status"]["podIP"]
        said = node.kubectl("exec", pod, "-n", place, "--", "python", "-c", CONNECT, address)
        assert said.startswith(("reached", "kept out")), said
        return said.startswith("reached")

    assert [reaches(place, gateway) for place in bystanders] == [True, True, True]
    soon(lambda: not any(reaches(place, engine) for place in bystanders), "the engine to be closed to bystanders")
    assert reaches(SYSTEM, engine, gateway["metadata"]["name"])
    assert "[DONE]" in ask(node, model)

    try:
        install(values=[f"monitoring.namespace={monitoring}"])
        soon(lambda: reaches(monitoring, engine), "monitoring to be let in")
        assert not any(reaches(place, engine) for place in (namespace, elsewhere))
    finally:
        install()
    soon(lambda: not reaches(monitoring, engine), "monitoring to be kept out again")


def bystander(namespace: str, image: str) -> dict[str, Any]:
    """A pod that has Python and nothing to do."""
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
        "metadata": {"name": "bystander", "namespace": namespace},
        "spec": {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 0, "containers": [container]},
    }
