"""What the agent or the kubelet cannot fetch says why and what to do, and heals once it is mended."""

import time
from typing import Any

from client import SYSTEM, Client
from cluster.layout import REPOSITORY
from scenario import OPERATOR, apply, ask
from stores import Registry

TINY = REPOSITORY / "models" / "quire-tiny"
TOKEN = "hf_right"
SMALL = {"name": "model", "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}}
"""A file system of 4 MiB; the weights have 8."""
WRONG = {
    "no-token": ("WeightsUnauthorized", "the Secret that spec.model.auth names"),
    "wrong-token": ("WeightsUnauthorized", "the Secret that spec.model.auth names"),
    "no-repository": ("WeightsNotFound", "Check the name of the repository"),
    "too-small": ("DiskFull", "a larger spec.model.volume"),
    "full-on-the-way": ("DiskFull", "a larger spec.model.volume"),
    "no-image": ("ImagePullFailed", "check its name and the pull secrets"),
}


def test_what_cannot_be_fetched_says_why_and_what_to_do_and_heals_once_mended(
    cluster, namespace, tiny, soon, record, hub, registry
):
    gated, silent = hub(TINY, f"--token={TOKEN}"), hub(TINY, "--hide-sizes", port=8392)
    for name, token in {"right": TOKEN, "wrong": "hf_wrong"}.items():
        apply(cluster, secret(namespace, name, token))

    def fetched(name: str, store=gated, auth: str = "", source: str = "hf://org/model", volumes=()) -> dict[str, Any]:
        access = {"auth": {"secretRef": {"name": auth}}} if auth else {}
        resource = tiny(name, model={"source": source, **access})
        resource["spec"]["podTemplate"] = store.pod_template(resource["spec"].get("podTemplate", {}), volumes)
        return resource

    def pulled(image: str) -> dict[str, Any]:
        resource = tiny("no-image")
        pod = resource["spec"].get("podTemplate", {}).get("spec", {})
        (engine,) = pod.get("containers", [{"name": "engine"}])
        engine = {**engine, "image": image, "imagePullPolicy": "IfNotPresent"}
        resource["spec"]["podTemplate"] = {"spec": {**pod, "containers": [engine]}}
        return resource

    def states() -> dict[str, tuple[str, str, str]]:
        """Status, reason and message of each one's Ready."""
        return {
            each["metadata"]["name"]: (entry["status"], entry["reason"], entry["message"])
            for each in cluster.objects("llmd", namespace)
            for entry in each.get("status", {}).get("conditions", [])
            if entry["type"] == "Ready"
        }

    began = time.monotonic()
    for resource in (
        fetched("no-token"),
        fetched("wrong-token", auth="wrong"),
        fetched("no-repository", auth="right", source="hf://org/nothing"),
        fetched("too-small", auth="right", volumes=[SMALL]),
        fetched("full-on-the-way", silent, volumes=[SMALL]),
        pulled(f"{registry.address if registry else 'registry.invalid'}/quire/engine:none"),
    ):
        apply(cluster, resource)
    waiting = dict(WRONG)

    def told() -> bool:
        for name, (_, reason, message) in states().items():
            if name in waiting and reason == waiting[name][0]:
                assert WRONG[name][1] in message
                record(f"apply of six -> {reason} ({name})", time.monotonic() - began)
                del waiting[name]
        return not waiting

    soon(told, "every reason")

    def are_shown() -> bool:
        lines = cluster.kubectl("get", "llmd", "-n", namespace).splitlines()
        return all(
            any(line.startswith(f"{name} ") and reason in line for line in lines) for name, (reason, _) in WRONG.items()
        )

    soon(are_shown, "a table that shows every reason")
    cluster.kubectl(
        "delete", "llmd", "wrong-token", "full-on-the-way", "no-repository", "-n", namespace, "--wait=false"
    )

    began = time.monotonic()
    mended = [fetched("no-token", auth="right"), fetched("too-small", auth="right"), pulled(present(cluster, registry))]
    for resource in mended:
        apply(cluster, resource)
    names = [resource["metadata"]["name"] for resource in mended]
    soon(lambda: all(states()[name][0] == "True" for name in names), "healing")
    record("mended -> Ready (three of them)", time.monotonic() - began)
    for resource in mended:
        assert "[DONE]" in ask(cluster, resource["spec"]["model"]["servedNames"][0])


def present(cluster: Client, registry: Registry | None) -> str:
    """The engine's image: from the registry by its digest, where there is one."""
    (operator,) = cluster.objects("deployments", SYSTEM, OPERATOR)
    flags = operator["spec"]["template"]["spec"]["containers"][0]["args"]
    (image,) = (flag.partition("=")[2] for flag in flags if flag.startswith("--engine-image="))
    return registry.push(image, "quire/engine:1") if registry else image


def secret(namespace: str, name: str, token: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"token": token}}
