"""What a cluster has besides its node: names, metrics, volumes."""

from typing import Any

import yaml

from cluster import daemon, images
from cluster.errors import ClusterError
from cluster.layout import SOURCES, Layout

NAMES = ("coredns", "metrics-server")
VOLUMES = 20
"""Of 1 GiB each. A released one is not given out again: this cluster lives for one run, or for some."""


def pack(layout: Layout) -> None:
    """Images of the add-ons and of every pod's sandbox, where they are not packed yet.

    Raises:
        ClusterError: no C compiler.
    """
    packed = {archive.stem for archive in layout.images.glob("*.tar")}
    if "pause" not in packed:
        images.pack_pause(layout)
    for name in NAMES:
        if name not in packed:
            images.pack_binary(layout, name)


def apply(layout: Layout) -> None:
    """
    Raises:
        ClusterError: the API server refused one.
    """
    for name in NAMES:
        _kubectl(layout, "apply", "--filename", str(SOURCES / "manifests" / f"{name}.yaml"))
    _kubectl(layout, "apply", "--filename", "-", given=yaml.safe_dump_all(_storage(layout)))


def wait(layout: Layout) -> None:
    """Until pods can look names up.

    Raises:
        ClusterError: not in time.
    """
    _kubectl(layout, "--namespace=kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")


def _storage(layout: Layout) -> list[dict[str, Any]]:
    """A default class as kind has one: its volumes are folders of the node, and bound once a pod asks for them."""
    metadata = {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}
    made: list[dict[str, Any]] = [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": metadata,
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        }
    ]
    for number in range(VOLUMES):
        folder = layout.state / "volumes" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        spec = {
            "storageClassName": "standard",
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "1Gi"},
            "hostPath": {"path": str(folder)},
        }
        name = {"name": f"standard-{number}"}
        made.append({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": name, "spec": spec})
    return made


def _kubectl(layout: Layout, *arguments: str, given: str | None = None) -> None:
    done = daemon.run(layout, ["kubectl", *arguments], timeout_s=150.0, given=given)
    if done.returncode:
        raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
