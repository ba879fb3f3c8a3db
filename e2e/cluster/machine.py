"""What a kubelet changes on the machine that runs it, and how `down` takes it back."""

import contextlib
import json
import shutil
from pathlib import Path

from cluster.layout import Layout

CGROUPS = Path("/sys/fs/cgroup")
# The kubelet sets these when it starts.
SYSCTLS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
SHARED_FOLDERS = ("/opt/containerd", "/run/containerd", "/var/lib/cni", "/var/lib/kubelet", "/var/log/containers")
"""Where containerd, kubelet and CNI plugins keep a few things wherever else they are told to."""
OTHER_CONTAINERD = Path("/run/containerd/containerd.sock")
CPU_SHARES = 10240
"""All pods together weigh as much as ten processes of the machine; without it as much as one."""


def remember_sysctls(layout: Layout) -> None:
    values = {name: (Path("/proc/sys") / name).read_text().strip() for name in SYSCTLS}
    _memory(layout).write_text(json.dumps(values))


def restore_sysctls(layout: Layout) -> None:
    if _memory(layout).exists():
        for name, value in json.loads(_memory(layout).read_text()).items():
            (Path("/proc/sys") / name).write_text(value)


def remember_folders(layout: Layout) -> None:
    """Which of SHARED_FOLDERS are not there, and therefore are the cluster's once they are."""
    _absent(layout).write_text(json.dumps([folder for folder in SHARED_FOLDERS if not Path(folder).exists()]))


def remove_folders(layout: Layout) -> None:
    """Those that the cluster made, unless another containerd has come, whose they may be by now."""
    if not _absent(layout).exists() or OTHER_CONTAINERD.exists():
        return
    for folder in json.loads(_absent(layout).read_text()):
        if not mounts_below(Path(folder)):
            shutil.rmtree(folder, ignore_errors=True)
    # The state may be kept: what others make there from now on is theirs.
    _absent(layout).unlink()


def create_cgroups(layout: Layout) -> None:
    """The cluster's pods live below a cgroup of its own, so that removing them touches no other's."""
    for root in _roots():
        (root / layout.name).mkdir(exist_ok=True)
    shares = CGROUPS / "cpu" / layout.name / "cpu.shares"
    if shares.exists():
        shares.write_text(str(CPU_SHARES))
    cpuset = CGROUPS / "cpuset"
    if cpuset.is_dir():
        for file in ("cpuset.cpus", "cpuset.mems"):
            (cpuset / layout.name / file).write_text((cpuset / file).read_text())


def remove_cgroups(layout: Layout) -> None:
    for root in _roots():
        top = root / layout.name
        if not top.is_dir():
            continue
        for folder in sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            top.rmdir()


def mounts_below(*folders: Path) -> list[str]:
    """Mount points below the folders, deepest first."""
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted(
        (point for point in points if any(point.startswith(f"{folder}/") for folder in folders)), reverse=True
    )


def _roots() -> list[Path]:
    """The hierarchies of cgroup v1, or the single one of v2."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def _absent(layout: Layout) -> Path:
    return layout.state / "absent-folders.json"


def _memory(layout: Layout) -> Path:
    return layout.state / "sysctls.json"
