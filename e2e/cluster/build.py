"""Builds Kubernetes and its tools from Go modules; the Go build cache makes every build but the first quick."""

import os
import shutil
import subprocess
from pathlib import Path

from cluster.errors import ClusterError
from cluster.layout import SOURCES, Layout

KUBE_COMPONENTS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
)
TOOLS = {
    "helm": ("helm.sh/helm/v3/cmd/helm", "-X helm.sh/helm/v3/internal/version.version=v3.19.5"),
    "coredns": (".", ""),
    "kwok": ("sigs.k8s.io/kwok/cmd/kwok", ""),
    "metrics-server": ("sigs.k8s.io/metrics-server/cmd/metrics-server", ""),
    "network-policies": (".", ""),
}
VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


def build_kube(layout: Layout) -> None:
    """One binary for every component; each component's name is a link to it.

    Raises:
        ClusterError: Go is missing or the build failed.
    """
    version = _go(["list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes"], SOURCES / "go/kube").strip()
    facts = {
        "gitVersion": version,
        "gitMajor": "1",
        "gitMinor": version.split(".")[1],
        "gitTreeState": "clean",
        "gitCommit": "modcache",
        "buildDate": "2026-01-01T00:00:00Z",
    }
    flags = " ".join(f"-X {package}.{key}={value}" for package in VERSION_PACKAGES for key, value in facts.items())
    _build(SOURCES / "go/kube", ".", layout.binaries / "kube", flags)
    for component in KUBE_COMPONENTS:
        link = layout.binaries / component
        link.unlink(missing_ok=True)
        link.symlink_to("kube")


def build_tool(layout: Layout, name: str) -> None:
    """One of TOOLS.

    Raises:
        ClusterError: Go is missing or the build failed.
    """
    package, flags = TOOLS[name]
    _build(SOURCES / "go" / name, package, layout.binaries / name, flags)


def _build(folder: Path, package: str, output: Path, flags: str) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    _go(["build", "-trimpath", "-ldflags", f"-s -w {flags}".strip(), "-o", str(output), package], folder)


def _go(arguments: list[str], folder: Path) -> str:
    go = shutil.which("go")
    if go is None:
        raise ClusterError("Go is not on the PATH. The cluster is built from Go modules: install Go 1.24 or newer.")
    done = subprocess.run(
        [go, *arguments],
        cwd=folder,
        env={**os.environ, "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"`go {' '.join(arguments[:2])}` failed in {folder}:\n{done.stderr[-2000:]}")
    return done.stdout
