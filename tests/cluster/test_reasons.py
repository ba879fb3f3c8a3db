"""Why a pod does not serve, told from the very objects that a kubelet would write: its status is written here instead.

The pods lie on a node that nobody tends, so that nothing but the test changes them.
"""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("operator")

OURS = "app.kubernetes.io/managed-by=quire-operator"
TINY = Path(__file__).parents[2] / "models" / "quire-tiny"
LAID = {"spec": {"nodeName": "still", "tolerations": [{"operator": "Exists"}]}}
STOPPED = "2026-01-01T00:00:00Z"
USAGE = "Usage: quire serve [OPTIONS] [model]\nTry 'quire serve -h' for help.\n\nError: No such option: --nosuch\n"
"""What the kubelet takes from the log of an engine that does not know a flag."""


@pytest.fixture(scope="module")
def still(cluster):
    """A node without a kubelet, with a GPU of 8 MiB."""
    sizes = {"cpu": "64", "memory": "256Gi", "pods": "2000", "nvidia.com/gpu": "8"}
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "still", "labels": {"nvidia.com/gpu.memory": "8"}},
        "status": {"allocatable": sizes, "capacity": sizes},
    }
    cluster.kubectl("apply", "-f", "-", given=node)
    yield
    cluster.kubectl("delete", "node", "still", "--wait=false")


@pytest.fixture
def laid(cluster, namespace, tiny, soon, still):
    """Apply an LLMDeployment whose one pod lies still; the pod's name."""

    def make(**spec) -> str:
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny(podTemplate=LAID, **spec))
        (pod,) = soon(lambda: cluster.objects("pods", namespace, OURS), "a pod")
        return pod["metadata"]["name"]

    return make


@pytest.fixture
def write(cluster, namespace):
    """Write a pod's status as a kubelet does."""

    def patch(pod: str, **status) -> None:
        change = json.dumps({"status": {"phase": "Pending", **status}})
        cluster.kubectl("patch", "pod", pod, "-n", namespace, "--subresource=status", "--type=merge", "-p", change)

    return patch


def container(name: str = "engine", restarts: int = 0, **state) -> dict:
    common = {"image": "quire/runtime:1", "imageID": "", "ready": False, "started": False}
    return {"name": name, "restartCount": restarts, **common, **state}


def ended(code: int, message: str = "", reason: str = "Error") -> dict:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message, "finishedAt": STOPPED}}


def backing_off(code: int, message: str = "", reason: str = "Error", restarts: int = 1) -> dict:
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    return {"restarts": restarts, "state": waiting, "lastState": ended(code, message, reason)}


def said(reason: str, message: str) -> str:
    return json.dumps({"reason": reason, "message": message})


@pytest.mark.parametrize(
    ("containers", "reason", "leaf", "words"),
    [
        ([container(**backing_off(137, reason="OOMKilled"))], "OutOfMemory", "Fits", "raise resources.memory"),
        (
            [container(state={"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})],
            "ImagePullFailed",
            "Loaded",
            "quire/runtime:1 cannot be pulled: not found; check its name and the pull secrets",
        ),
        (
            [container(**backing_off(2, said("DoesNotFit", "needs 3 GiB, 1 is left")))],
            "DoesNotFit",
            "Fits",
            "needs 3 GiB, 1 is left",
        ),
        (
            [container(**backing_off(2, USAGE, restarts=4))],
            "InvalidSpec",
            "Resolved",
            "does not take these flags: No such option: --nosuch; correct spec.engine.extraArgs",
        ),
        (
            [container(**backing_off(1, "Traceback\nValueError: rope_theta is a list", restarts=4))],
            "CrashLoop",
            "Loaded",
            "crashed 4 times in a row; last: ",
        ),
        (
            [container(**backing_off(1, "Traceback\nValueError: rope_theta is a list", restarts=4))],
            "CrashLoop",
            "Loaded",
            "exit code 1: ValueError: rope_theta is a list",
        ),
    ],
    ids=["oom", "image", "engine", "flags", "loop", "last-line"],
)
def test_what_became_of_the_engine_is_the_reason(
    cluster, namespace, soon, laid, write, containers, reason, leaf, words
):
    write(laid(), containerStatuses=containers)
    soon(lambda: cluster.ready("tiny", namespace)[1] == reason, reason)
    assert words in cluster.ready("tiny", namespace)[2]
    conditions = {c["type"]: c for c in cluster.get("llmd", "tiny", namespace)["status"]["conditions"]}
    assert (conditions[leaf]["status"], conditions[leaf]["reason"]) == ("False", reason)


@pytest.mark.parametrize(
    ("reason", "message"),
    [("out of luck!", "no luck today"), ("Unlucky", "no luck today " * 3000)],
    ids=["word", "length"],
)
def test_an_engine_that_ends_with_strange_words_freezes_nothing(
    cluster, namespace, tiny, soon, laid, write, reason, message
):
    write(laid(), containerStatuses=[container(**backing_off(1, said(reason, message)))])
    soon(lambda: "no luck today" in cluster.ready("tiny", namespace)[2], "what it said")
    cluster.kubectl("delete", "service", "tiny", "-n", namespace)
    soon(lambda: cluster.get("service", "tiny", namespace), "the service again")


@pytest.mark.parametrize("reason", ["WeightsUnauthorized", "WeightsNotFound", "UnsupportedArchitecture", "DiskFull"])
def test_what_the_agent_says_when_it_ends_is_the_reason(cluster, namespace, soon, laid, write, reason):
    agent = container("agent", **backing_off(10, said(reason, "hf://org/tiny: do this and that.")))
    waiting = container(state={"waiting": {"reason": "PodInitializing"}})
    write(laid(model={"source": "hf://org/tiny"}), initContainerStatuses=[agent], containerStatuses=[waiting])
    soon(lambda: cluster.ready("tiny", namespace)[1] == reason, reason)
    assert "hf://org/tiny: do this and that." in cluster.ready("tiny", namespace)[2]


def test_a_wrong_entry_in_the_models_secret_is_named_before_a_pod_starts(cluster, namespace, tiny, soon):
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hub"}, "stringData": {"HF_TOKEN": "x"}}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=secret)
    wish = tiny(model={"source": "hf://org/tiny", "auth": {"secretRef": {"name": "hub"}}})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=wish)
    soon(lambda: cluster.ready("tiny", namespace)[1] == "SecretNotFound", "the reason")
    assert "the Secret hub lacks token; add it" in cluster.ready("tiny", namespace)[2]
    secret["stringData"] = {"token": "x"}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=secret)
    cluster.kubectl("annotate", "llmd", "tiny", "-n", namespace, "look=again")
    soon(lambda: cluster.objects("pods", namespace, OURS), "a pod")


@pytest.fixture
def agent(cluster, namespace, tmp_path):
    """A real agent in the cluster's network, at the address that the still pod's status names."""
    started = []

    def start(*command: str) -> None:
        secret = cluster.get("secret", "tiny-internal", namespace)
        key = base64.b64decode(secret["data"]["key"]).decode()
        environment = {**os.environ, "QUIRE_INTERNAL_KEY": key}
        with (tmp_path / "agent.log").open("w") as log:
            line = [*cluster.layout.inside, sys.executable, *command]
            started.append(subprocess.Popen(line, stdout=log, stderr=log, env=environment))

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


FETCHING = [container("agent", state={"running": {"startedAt": STOPPED}})]


def test_how_far_the_weights_are_is_told_while_they_come(cluster, namespace, soon, laid, write, agent):
    pod = laid(model={"source": "hf://org/tiny"})
    agent(
        "-c",
        "import os, time\n"
        "from quire_runtime.agent.pages import Pages\n"
        "from quire_runtime.agent.progress import Meter\n"
        "meter = Meter('hf://org/tiny', '/models')\n"
        "pages = Pages('127.0.0.1', 8001, meter, os.environ['QUIRE_INTERNAL_KEY'])\n"
        "meter.report(3 << 30, 15 << 30)\n"
        "time.sleep(600)",
    )
    write(pod, podIP="127.0.0.1", podIPs=[{"ip": "127.0.0.1"}], initContainerStatuses=FETCHING)
    soon(lambda: cluster.ready("tiny", namespace)[1] == "Downloading", "Downloading")
    soon(lambda: cluster.ready("tiny", namespace)[2].startswith("3.0 of 15.0 GiB, "), "how far it is")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"resources": {"memory": "64Mi"}}, "the memory limit is 64 MiB"),
        ({"engine": {"device": "auto"}, "resources": {"gpus": 1}}, "a GPU of node still has 8 MiB"),
    ],
    ids=["limit", "gpu"],
)
def test_that_a_model_does_not_fit_is_computed_from_what_the_agent_has_read(
    cluster, namespace, soon, laid, write, agent, spec, words
):
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "weights"},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=claim)
    pod = laid(model={"source": "pvc://weights/tiny"}, **spec)
    flags = ["--source", "pvc://weights/tiny", "--destination", str(TINY), "--host", "127.0.0.1", "--port", "8001"]
    agent("-m", "quire_runtime.agent", *flags)
    write(pod, podIP="127.0.0.1", podIPs=[{"ip": "127.0.0.1"}], initContainerStatuses=FETCHING)
    soon(lambda: cluster.ready("tiny", namespace)[1] == "DoesNotFit", "DoesNotFit")
    message = cluster.ready("tiny", namespace)[2]
    assert "weights need" in message
    assert words in message
