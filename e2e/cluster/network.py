"""The cluster's network namespace: no route leads out of the machine, and deleting it removes every rule and link."""

import subprocess

from cluster.errors import ClusterError
from cluster.layout import NODE_IP, Layout


def create(layout: Layout) -> None:
    """
    Raises:
        ClusterError: not root, or iproute2 is missing.
    """
    if layout.namespace.exists():
        return
    _run(["ip", "netns", "add", layout.name])
    for arguments in (
        ["ip", "link", "set", "lo", "up"],
        # An empty bridge is the node's interface (not every kernel has dummy devices); the default route ends there.
        ["ip", "link", "add", "node0", "type", "bridge"],
        ["ip", "address", "add", f"{NODE_IP}/32", "dev", "node0"],
        ["ip", "link", "set", "node0", "up"],
        ["ip", "route", "add", "default", "dev", "node0", "src", NODE_IP],
        ["sysctl", "-qw", "net.ipv4.ip_forward=1"],
    ):
        _run([*layout.inside, *arguments])
    bridged = [*layout.inside, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"]
    subprocess.run(bridged, capture_output=True, check=False)


def delete(layout: Layout) -> None:
    if layout.namespace.exists():
        _run(["ip", "netns", "delete", layout.name])


def _run(arguments: list[str]) -> None:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ClusterError(f"{error.filename} is missing: apt-get install iproute2 procps util-linux") from None
    if done.returncode:
        raise ClusterError(f"`{' '.join(arguments)}` failed: {done.stderr.strip()}. The cluster needs root.")
