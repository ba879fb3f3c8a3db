"""Images of Quire itself, built by buildah from the Dockerfiles of images/ on a base that debootstrap makes.

No build reaches a network: wheels are downloaded beforehand, and buildah runs in an empty network namespace.
The engine's environment has 4.8 GB because of torch. `pack_engine_base` is the quick way around an image of it: Python
alone, for pods that mount the repository and its environment from the node, read-only.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cluster import bytecode, images, machine
from cluster.errors import ClusterError
from cluster.layout import IMAGE_PREFIX, REPOSITORY, Layout

SMALL = ("operator", "gateway", "agent")
RUNTIME = "runtime"
ENGINE_BASE = "quire/engine-base"
STARTS = {
    "operator": ["quire_operator.main"],
    "gateway": ["quire_gateway.main"],
    "agent": ["quire_runtime.agent.main"],
    "runtime": [
        "quire.serve",
        "quire_runtime.server.run",
        "quire_runtime.engine.process",
        "quire_runtime.engine.engine",
    ],
}
"""What the processes of an image import."""
EXTRAS = {"operator": "operator", "gateway": "gateway", "agent": "agent", "runtime": "runtime,cli"}
SUITE = "bookworm"
PYTHON_VERSION = "3.11"
"""What SUITE has: wheels are downloaded for it, whatever Python downloads them."""
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
COMPILER_PACKAGES = "gcc,libc6-dev,python3-dev"
BACKEND = "hatchling"
CONTEXT = ("api", "text", "runtime", "kernels", "gateway", "operator", "cli", "models/quire-tiny")

PYTHON = Path(sys.base_prefix)
LIBRARIES = (
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libnss_dns.so.2",
    "libnss_files.so.2",
    "libpthread.so.0",
    "libresolv.so.2",
    "librt.so.1",
    "libstdc++.so.6",
    "libutil.so.1",
)
LEFT_OUT = shutil.ignore_patterns(
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages", "config-*", "__pycache__", "*.a"
)


def build(layout: Layout, components: Iterable[str]) -> dict[str, str]:
    """Build what has changed since it was built last; archives are in `layout.images`, that of the runtime one below.

    Of what was built, the size that buildah tells: all layers unpacked.

    Raises:
        ClusterError: buildah or debootstrap is missing, or a build failed.
    """
    wanted = {name: _digest_of_sources(name) for name in components}
    stale = {name: digest for name, digest in wanted.items() if not _is_current(archive(layout, name), digest)}
    sizes: dict[str, str] = {}
    if not stale:
        return sizes
    wheels = _download_wheels(layout, stale)
    try:
        for name, digest in stale.items():
            sizes[name] = _build(layout, name, wheels)
            _stamp(archive(layout, name)).write_text(digest)
    finally:
        # buildah leaves its store mounted.
        _unmount_below(layout.home / "containers")
    return sizes


def _build(layout: Layout, name: str, wheels: Path) -> str:
    """Build one image into its archive; its size."""
    base = _ensure_base(layout, f"{BASE_PACKAGES},{COMPILER_PACKAGES}" if name == RUNTIME else BASE_PACKAGES)
    built = f"localhost/quire-{name}:1"
    _buildah(
        layout,
        *("bud", "--quiet", "--pull-never", "--layers=false"),
        *("--file", f"images/{name}.Dockerfile", "--tag", built, "--volume", f"{wheels}:/wheels:ro"),
        *("--build-arg", f"BASE_IMAGE={base}"),
        *("--build-arg", "PIP_NO_INDEX=1", "--build-arg", "PIP_FIND_LINKS=/wheels", "."),
        without_network=True,
    )
    _require_bytecode(layout, name, built)
    file = archive(layout, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    _buildah(layout, "push", "--quiet", built, f"docker-archive:{file}:{IMAGE_PREFIX}/quire/{name}:1")
    (told,) = json.loads(_buildah(layout, "images", "--json", built))
    _buildah(layout, "rmi", "--force", built)
    return str(told["size"])


def _require_bytecode(layout: Layout, name: str, built: str) -> None:
    """
    Raises:
        ClusterError: each container of the image would compile modules at its start, for it cannot keep their bytecode.
    """
    container = _buildah(layout, "from", "--pull-never", built).strip()
    try:
        program = Path(bytecode.__file__).read_text()
        command = ("run", "--user=65532", container, "--", "python", "-c", program, *STARTS[name])
        lacking = _buildah(layout, *command, without_network=True).split()
    finally:
        _buildah(layout, "rm", container)
    if lacking:
        raise ClusterError(
            f"{built} has no bytecode of {len(lacking)} modules that its processes import, {lacking[0]} for one: have "
            f"images/{name}.Dockerfile compile them."
        )


def archive(layout: Layout, name: str) -> Path:
    folder = layout.images / "full" if name == RUNTIME else layout.images
    return folder / f"quire-{name}.tar"


def pack_engine_base(layout: Layout) -> None:
    """Python alone at its own path, found where the repository's environment expects it, and that one's bytecode."""
    # Pods cannot write into the environment: without its bytecode each of them would compile all of torch.
    _run(sys.executable, "-c", f"import {', '.join(STARTS[RUNTIME])}", PYTHONDONTWRITEBYTECODE="")
    file = archive(layout, "engine-base")
    digest = hashlib.sha256(f"{ENGINE_BASE} {sys.version} {PYTHON} {REPOSITORY} with bytecode".encode()).hexdigest()
    if _is_current(file, digest):
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _copy_python(root)
        (root / REPOSITORY.relative_to("/")).mkdir(parents=True)
        variables = {"PATH": f"{REPOSITORY}/.venv/bin", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        images.pack(layout, "quire-engine-base", root, [], variables, ENGINE_BASE)
    _stamp(file).write_text(digest)


def _digest_of_sources(name: str) -> str:
    digest = hashlib.sha256(f"{IMAGE_PREFIX}/quire/{name}:1".encode())
    folders = (REPOSITORY / folder for folder in CONTEXT)
    files = {path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    files |= {REPOSITORY / file for file in ("pyproject.toml", "constraints.txt", f"images/{name}.Dockerfile")}
    for path in sorted(files):
        digest.update(f"{path.relative_to(REPOSITORY)} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _is_current(file: Path, digest: str) -> bool:
    return file.exists() and _stamp(file).exists() and _stamp(file).read_text() == digest


def _stamp(file: Path) -> Path:
    return file.with_suffix(".digest")


def _download_wheels(layout: Layout, components: Iterable[str]) -> Path:
    folder = layout.home / "wheels"
    extras = ",".join(EXTRAS[name] for name in components)
    facts = (REPOSITORY / "pyproject.toml").read_bytes() + (REPOSITORY / "constraints.txt").read_bytes()
    done = folder / f"{hashlib.sha256(facts).hexdigest()[:16]}-{extras.replace(',', '-')}.done"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run(
            *(REPOSITORY / ".uv/bin/python", "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--only-binary=:all:", "--python-version", PYTHON_VERSION, "--dest", folder, "--find-links", folder),
            *(BACKEND, f".[{extras}]"),
            # Also of what pip installs to build ours.
            PIP_CONSTRAINT=str(REPOSITORY / "constraints.txt"),
            PIP_BUILD_CONSTRAINT=str(REPOSITORY / "constraints.txt"),
        )
        done.touch()
    return folder


def _ensure_base(layout: Layout, packages: str) -> str:
    """A Debian with `packages` as an image; its name, pinned by its digest."""
    name = f"localhost/base-{hashlib.sha256(packages.encode()).hexdigest()[:8]}"
    if pinned := _pinned(layout, name):
        return pinned
    # The Debian mirror that this machine uses.
    sites = _run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages").split()
    root = layout.home / "base"
    _remove(root)
    try:
        _run("debootstrap", "--variant=minbase", f"--include={packages}", SUITE, root, *sites[:1])
        # debootstrap leaves /proc mounted where something else had a file of it open.
        _unmount_below(root)
        for leftover in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
            shutil.rmtree(root / leftover, ignore_errors=True)
        container = _buildah(layout, "from", "scratch").strip()
        _buildah(layout, "add", "--quiet", container, str(root), "/")
        _buildah(layout, "commit", "--quiet", "--rm", container, f"{name}:1")
    finally:
        _remove(root)
    return _pinned(layout, name)


def _pinned(layout: Layout, name: str) -> str:
    """The name with the digest of what it is now; empty if there is no such image."""
    found = json.loads(_buildah(layout, "images", "--json", "--filter", f"reference={name}:1")) or []
    return f"{name}@{found[0]['digest']}" if found else ""


def _remove(root: Path) -> None:
    _unmount_below(root)
    shutil.rmtree(root, ignore_errors=True)


def _unmount_below(root: Path) -> None:
    for mount in machine.mounts_below(root):
        _run("umount", "--lazy", mount)


def _buildah(layout: Layout, *arguments: str, without_network: bool = False) -> str:
    storage = ["--root", str(layout.home / "containers"), "--runroot", str(layout.run / "buildah")]
    alone = ["unshare", "--net"] if without_network else []
    return _run(*alone, "buildah", *storage, "--storage-driver=overlay", *arguments)


def _run(*command: str | Path, **environment: str) -> str:
    """
    Raises:
        ClusterError: the program is missing or failed.
    """
    try:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=REPOSITORY,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{error.filename} is missing: apt-get install buildah debootstrap") from None
    if done.returncode:
        raise ClusterError(f"`{' '.join(map(str, command))}` failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def _copy_python(root: Path) -> None:
    """Python at its own path, every library that it links to, and a writable /tmp."""
    home = root / PYTHON.relative_to("/")
    shutil.copytree(PYTHON, home, symlinks=True, ignore=LEFT_OUT)
    # An image has no times of files, by which bytecode would be compared with its source.
    _run(sys.executable, "-m", "compileall", "-q", "--invalidation-mode=unchecked-hash", *home.glob("lib/python3*"))
    (root / "tmp").mkdir(mode=0o1777)
    (root / "etc").mkdir()
    (root / "etc" / "passwd").write_text("quire:x:65532:65532::/tmp:/sbin/nologin\n")
    objects = [PYTHON / "bin" / Path(sys.executable).resolve().name, *PYTHON.glob("lib/python3*/lib-dynload/*.so")]
    linked = subprocess.run(["ldd", *objects], capture_output=True, text=True, check=False).stdout
    wanted = {Path(word) for line in linked.splitlines() for word in line.split() if word.startswith("/lib")}
    machine = next(path for path in wanted if path.name == "libc.so.6").parent
    wanted |= {machine / name for name in LIBRARIES}
    for library in sorted(path for path in wanted if path.exists() and not str(path).endswith(":")):
        target = root / library.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library.resolve(), target)
