"""Ends everything the cluster started and removes what it left, and nothing of anybody else's."""

import contextlib
import shutil
import subprocess
import time
from pathlib import Path

from cluster import control_plane, daemon, machine, network, node
from cluster.layout import Layout

CONTAINERS_DEADLINE_S = 30.0


def down(layout: Layout, *, keep_state: bool = False) -> None:
    """A cluster that is not up is fine."""
    for name in ("kwok", node.POLICIES, "kubelet", "kube-proxy"):
        daemon.stop(layout, name)
    sandboxes = _sandbox_namespaces(layout)
    if daemon.is_running(layout, "containerd"):
        _remove_containers(layout)
    daemon.stop(layout, "containerd", grace_s=5.0)
    for name in control_plane.NAMES:
        daemon.stop(layout, name)
    for mount in machine.mounts_below(layout.state, layout.run):
        subprocess.run(["umount", "--lazy", mount], capture_output=True, check=False)
    for sandbox in sandboxes:
        subprocess.run(["umount", "--lazy", str(sandbox)], capture_output=True, check=False)
        sandbox.unlink(missing_ok=True)
    machine.remove_cgroups(layout)
    machine.restore_sysctls(layout)
    machine.remove_folders(layout)
    network.delete(layout)
    shutil.rmtree(layout.run, ignore_errors=True)
    if not keep_state:
        shutil.rmtree(layout.state, ignore_errors=True)


def _remove_containers(layout: Layout) -> None:
    tasks = node.ctr(layout, "tasks", "list", "--quiet").stdout.split()
    for task in tasks:
        node.ctr(layout, "tasks", "kill", "--signal=SIGKILL", task)
    deadline = time.monotonic() + CONTAINERS_DEADLINE_S
    while "RUNNING" in node.ctr(layout, "tasks", "list").stdout and time.monotonic() < deadline:
        time.sleep(0.1)
    for task in tasks:
        node.ctr(layout, "tasks", "delete", "--force", task)
    for container in node.ctr(layout, "containers", "list", "--quiet").stdout.split():
        node.ctr(layout, "containers", "delete", container)


def _sandbox_namespaces(layout: Layout) -> list[Path]:
    """Network namespaces of this cluster's pods: those whose address its own IPAM handed out."""
    ipam = layout.state / "cni-ipam" / "e2e"
    if not ipam.is_dir() or not daemon.is_running(layout, "containerd"):
        return []
    found = []
    for container in node.ctr(layout, "containers", "list", "--quiet").stdout.split():
        info = node.ctr(layout, "containers", "info", container).stdout
        with contextlib.suppress(ValueError):
            start = info.index("/run/netns/cni-")
            found.append(Path(info[start : info.index('"', start)]))
    return sorted(set(found))
