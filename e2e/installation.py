"""The cluster that scenarios run on, and Quire's chart on it."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from client import SYSTEM, VISITORS, Client
from cluster import add_ons, control_plane, network, node, pki, quire_images
from cluster.layout import IMAGE_PREFIX, REPOSITORY, Layout

CHART = REPOSITORY / "charts" / "quire"
FORMER_CHART = Path(__file__).parent / "fixtures" / "quire-0.1.0"
VALUES = ("gateway.resources.requests.cpu=100m", "gateway.autoscaling.enabled=false")
WAIT = ("--wait", "--timeout=5m")
CRD = "llmdeployments.quire.dev"


def open_client() -> Client:
    """What `make e2e` was given: CLUSTER=current or its own cluster, IMAGES=full or the repository mounted."""
    is_own = os.environ.get("QUIRE_E2E_CLUSTER") != "current"
    images_are = os.environ.get("QUIRE_E2E_IMAGES") or ("node" if is_own else "full")
    return Client(Layout(), is_own, is_repository_mounted=images_are == "node", is_visiting=not is_own)


def bring_up(client: Client) -> dict[str, float]:
    """Our own cluster from nothing, with every image of Quire on its node; seconds by part of the way.

    Raises:
        ClusterError: something is missing on this machine or did not start; the message says what.
    """
    layout, began = client.layout, time.monotonic()
    add_ons.pack(layout)
    engine = [] if client.is_repository_mounted else [quire_images.RUNTIME]
    quire_images.build(layout, [*quire_images.SMALL, *engine])
    if client.is_repository_mounted:
        quire_images.pack_engine_base(layout)
    built = time.monotonic()
    network.create(layout)
    pki.write_pki(layout)
    control_plane.start(layout)
    node.start(layout)
    for name in engine:
        node.import_image(layout, quire_images.archive(layout, name))
    add_ons.apply(layout)
    return {
        "images packed and built, where they have changed": round(built - began, 2),
        "cluster up, from nothing to a ready node with its images": round(time.monotonic() - built, 2),
    }


def prepare(client: Client) -> None:
    """The namespace of operator and gateways, and that of visitors, under the restricted standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    for name in (SYSTEM,) if client.is_own else (SYSTEM, VISITORS):
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        client.kubectl("apply", "-f", "-", given=namespace)


def refuse_where_quire_is(client: Client) -> None:
    """Scenarios exchange and remove the release, the CRD and all that belongs to them."""
    found = client.kubectl("get", f"crd/{CRD}", f"namespace/{SYSTEM}", "--ignore-not-found", "-o", "name").split()
    if found:
        pytest.exit(
            f"Quire is in this cluster already ({', '.join(found)}), and the scenarios would take it away. Take another"
            " cluster, or delete what an interrupted run has left; QUIRE_KEEP_CLUSTER=1 takes it as it is.",
            returncode=2,
        )


def remove(client: Client) -> None:
    """What `prepare` and `install` have made in a cluster of somebody else's."""
    client.helm("uninstall", "quire", "-n", SYSTEM, "--ignore-not-found", "--wait")
    client.kubectl("delete", f"crd/{CRD}", f"namespace/{SYSTEM}", f"namespace/{VISITORS}", "--ignore-not-found")


def images_of(client: Client, chart: Path = CHART) -> list[str]:
    """Flags for Helm that name the images: those of our node, or those that REGISTRY and TAG say."""
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    registry = IMAGE_PREFIX if client.is_own else os.environ.get("QUIRE_E2E_REGISTRY", "")
    tag = "1" if client.is_own else os.environ.get("QUIRE_E2E_TAG") or ("" if chart == CHART else version)
    flags = ["--set=images.pullPolicy=Never"] if client.is_own else []
    if registry:
        flags.append(f"--set-string=images.registry={registry}")
    if client.is_repository_mounted:
        flags.append(f"--set-string=images.runtime.repository={quire_images.ENGINE_BASE}")
    known = (chart / "values.yaml").read_text()
    parts = [part for part in ("operator", "gateway", "agent", "runtime") if f"\n  {part}:\n" in known]
    return [*flags, *(f"--set-string=images.{part}.tag={tag}" for part in parts if tag)]


def install(client: Client, chart: Path = CHART, values: Sequence[str] = ()) -> None:
    """Install or upgrade the release `quire`, with `name=value` settings, and wait until it is ready.

    Raises:
        AssertionError: Helm refused it or waited in vain; the message has the last words of Quire's pods.
    """
    flags = [*(f"--set={value}" for value in (*VALUES, *values)), *images_of(client, chart)]
    if file := os.environ.get("QUIRE_E2E_VALUES"):
        flags.append(f"--values={file}")
    try:
        client.helm("upgrade", "--install", "quire", str(chart), "-n", SYSTEM, *WAIT, *flags)
    except AssertionError as error:
        every = ("-l", "app.kubernetes.io/part-of=quire", "--prefix", "--tail=5")
        words = client.kubectl("logs", "-n", SYSTEM, *every, check=False)
        advice = "If a flag is unknown to them, the images are older than the chart: build and load them again."
        raise AssertionError(f"{error}\nWhat its pods say:\n{words}\n{advice}") from None
