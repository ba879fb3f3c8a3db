"""The cluster that scenarios run on, and Quire's chart on it."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from client import SYSTEM, Client
from cluster import control_plane, images, network, node, pki, quire_images
from cluster.layout import IMAGE_PREFIX, REPOSITORY, SOURCES, Layout

CHART = REPOSITORY / "charts" / "quire"
FORMER_CHART = Path(__file__).parent / "fixtures" / "quire-0.1.0"
VALUES = ("gateway.resources.requests.cpu=100m", "gateway.autoscaling.enabled=false")
WAIT = ("--wait", "--timeout=5m")
ADD_ONS = ("coredns", "metrics-server")


def open_client() -> Client:
    """What `make e2e` was given: CLUSTER=current or its own cluster, IMAGES=full or the repository mounted."""
    is_own = os.environ.get("QUIRE_E2E_CLUSTER") != "current"
    images_are = os.environ.get("QUIRE_E2E_IMAGES") or ("node" if is_own else "full")
    return Client(Layout(), is_own, is_repository_mounted=images_are == "node")


def bring_up(client: Client) -> dict[str, float]:
    """Our own cluster from nothing, with every image of Quire on its node; seconds by part of the way.

    Raises:
        ClusterError: something is missing on this machine or did not start; the message says what.
    """
    layout, began = client.layout, time.monotonic()
    packed = {archive.stem for archive in layout.images.glob("*.tar")}
    if "pause" not in packed:
        images.pack_pause(layout)
    for name in ADD_ONS:
        if name not in packed:
            images.pack_binary(layout, name)
    engine = [] if client.is_repository_mounted else [quire_images.RUNTIME]
    quire_images.build(layout, [*quire_images.SMALL, *engine])
    if client.is_repository_mounted:
        quire_images.pack_engine_base(layout)
        # Pods cannot write into the environment: without its bytecode each of them would compile all of torch.
        subprocess.run(
            [sys.executable, "-c", "import quire_runtime.engine.process, quire_runtime.server.run"], check=True
        )
    built = time.monotonic()
    network.create(layout)
    pki.write_pki(layout)
    control_plane.start(layout)
    node.start(layout)
    for name in engine:
        node.import_image(layout, quire_images.archive(layout, name))
    for name in ADD_ONS:
        client.kubectl("apply", "-f", str(SOURCES / "manifests" / f"{name}.yaml"))
    return {
        "images packed and built, where they have changed": round(built - began, 2),
        "cluster up, from nothing to a ready node with its images": round(time.monotonic() - built, 2),
    }


def prepare(client: Client) -> None:
    """The namespace of operator and gateways, under the restricted standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM, "labels": labels}}
    client.kubectl("apply", "-f", "-", given=namespace)


def images_of(client: Client, chart: Path = CHART) -> list[str]:
    """Flags for Helm that name the images on the node; none where the chart's own are pulled."""
    if not (client.is_own or client.is_repository_mounted):
        return []
    known = (chart / "values.yaml").read_text()
    engine = "engine-base" if client.is_repository_mounted else "runtime"
    flags = ["--set=images.pullPolicy=Never"]
    for part, image in {"operator": "operator", "gateway": "gateway", "agent": "agent", "runtime": engine}.items():
        if f"\n  {part}:\n" in known:
            flags.append(f"--set-string=images.{part}.repository={IMAGE_PREFIX}/quire-{image}")
            flags.append(f"--set-string=images.{part}.tag=1")
    return flags


def install(client: Client, chart: Path = CHART, values: Sequence[str] = ()) -> None:
    """Install or upgrade the release `quire`, with `name=value` settings, and wait until it is ready."""
    flags = [*(f"--set={value}" for value in (*VALUES, *values)), *images_of(client, chart)]
    if file := os.environ.get("QUIRE_E2E_VALUES"):
        flags.append(f"--values={file}")
    client.helm("upgrade", "--install", "quire", str(chart), "-n", SYSTEM, *WAIT, *flags)
