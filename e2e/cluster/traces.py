"""What a cluster may leave on the machine: read before it comes up and after it went down, nothing may be new."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cluster.layout import Layout
from cluster.machine import CGROUPS

SYSCTLS = Path("/proc/sys")
VOLATILE = (
    "fs/dentry-state",
    "fs/file-nr",
    "fs/inode-nr",
    "fs/inode-state",
    "fs/aio-nr",
    "fs/quota",
    "kernel/ns_last_pid",
    "kernel/pty/nr",
    "kernel/random",
    "net/netfilter/nf_conntrack_count",
)
"""Of the sysctls, those that tell what goes on instead of what was set."""
FOLDERS = ("/etc", "/etc/cni", "/opt", "/run", "/run/netns", "/var/lib", "/var/lib/cni", "/var/log")
"""Where kubelets, containerd and CNI plugins keep things unless they are told otherwise."""
NAMESPACES = "/run/netns/"


def new(layout: Layout, before: frozenset[str]) -> list[str]:
    """What has come since `before` was read."""
    return sorted(read(layout) - before)


def read(layout: Layout) -> frozenset[str]:
    """Each thing of the machine that a cluster could change, as a line; the network namespaces of others are theirs."""
    own = (str(layout.namespace), f"{NAMESPACES}cni-")
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    files = [str(path) for folder in FOLDERS if Path(folder).is_dir() for path in Path(folder).iterdir()]
    return frozenset(
        (
            *_processes(layout),
            *(f"mount {path}" for path in mounts if path.startswith(own) or not path.startswith(NAMESPACES)),
            *(f"cgroup {path}" for path, *_ in os.walk(CGROUPS)),
            *(f"link {link.name}" for link in Path("/sys/class/net").iterdir()),
            *(
                f"loop device on {file.read_text().strip()}"
                for file in Path("/sys/block").glob("loop*/loop/backing_file")
            ),
            *(f"file {path}" for path in files if path.startswith(own) or not path.startswith(NAMESPACES)),
            *(f"file {path}" for path in (layout.state, layout.run, layout.namespace) if path.exists()),
            *(f"packet filter {rule}" for rule in _packet_filter()),
            *_sysctls(),
        )
    )


def _processes(layout: Layout) -> Iterator[str]:
    """Of the cluster's cgroups, or started with one of its folders; a zombie waits for the machine's init alone."""
    own = {os.getpid(), os.getppid()}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) in own:
            continue
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            groups = (folder / "cgroup").read_text()
        except OSError:
            continue
        names = (f"{layout.state}/", f"{layout.run}/", f"--net={layout.namespace}")
        if words and (f"/{layout.name}" in groups or any(name in words for name in names)):
            yield f"process {folder.name}: {words[:200]}"


def _packet_filter() -> Iterator[str]:
    """Rules and sets of the machine's own network namespace; counters and times are in comments and brackets."""
    for command in (["iptables-save"], ["ip6tables-save"], ["ipset", "save"]):
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            yield from (line.partition(" [")[0] for line in done.stdout.splitlines() if not line.startswith("#"))


def _sysctls() -> Iterator[str]:
    for folder in ("fs", "kernel", "net", "vm"):
        for path in (SYSCTLS / folder).rglob("*"):
            name = str(path.relative_to(SYSCTLS))
            if name.startswith(VOLATILE) or not path.is_file():
                continue
            try:
                yield f"sysctl {name} = {path.read_text().strip()}"
            except (OSError, UnicodeDecodeError):
                continue
