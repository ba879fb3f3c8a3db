"""Images of the cluster's own parts, packed as docker-archives from files of this machine: no registry, no builder."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import ClusterError
from cluster.layout import IMAGE_PREFIX, Layout

PAUSE = r"""
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void down(int s) { _exit(0); }
static void reap(int s) { while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) {
  struct sigaction a = {.sa_handler = down}, r = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
  sigaction(SIGINT, &a, 0); sigaction(SIGTERM, &a, 0); sigaction(SIGCHLD, &r, 0);
  for (;;) pause();
}
"""


def pack_pause(layout: Layout) -> None:
    """The sandbox container of every pod.

    Raises:
        ClusterError: no C compiler.
    """
    if shutil.which("gcc") is None:
        raise ClusterError("gcc is missing: apt-get install gcc libc6-dev")
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "pause.c", Path(folder) / "root" / "pause"
        source.write_text(PAUSE)
        binary.parent.mkdir()
        subprocess.run(["gcc", "-Os", "-static", "-s", "-o", str(binary), str(source)], check=True)
        pack(layout, "pause", binary.parent, ["/pause"])


def pack_binary(layout: Layout, name: str) -> None:
    """An image that holds one static binary of `layout.binaries`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tmp").mkdir()
        shutil.copy(layout.binaries / name, Path(folder) / name)
        pack(layout, name, Path(folder), [f"/{name}"])


def pack(
    layout: Layout,
    name: str,
    root: Path,
    entrypoint: list[str],
    environment: Mapping[str, str] | None = None,
    repository: str = "",
) -> Path:
    """One layer from `root`, tagged e2e.local/REPOSITORY:1 (NAME, if none is given); returns the archive."""
    layout.images.mkdir(parents=True, exist_ok=True)
    archive = layout.images / f"{name}.tar"
    layer = archive.with_suffix(".layer")
    with tarfile.open(layer, "w") as tar:
        for child in sorted(root.iterdir()):
            tar.add(child, arcname=child.name, filter=_anonymous)
    digest = hashlib.sha256(layer.read_bytes()).hexdigest()
    variables = [f"{key}={value}" for key, value in (environment or {}).items()]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": entrypoint, "WorkingDir": "/", "Env": variables},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [
        {"Config": config_name, "RepoTags": [f"{IMAGE_PREFIX}/{repository or name}:1"], "Layers": ["layer.tar"]}
    ]
    with tarfile.open(archive, "w") as tar:
        for file, content in ((config_name, config), ("manifest.json", json.dumps(manifest).encode())):
            info = tarfile.TarInfo(file)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        tar.add(layer, arcname="layer.tar", filter=_anonymous)
    layer.unlink()
    return archive


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info
