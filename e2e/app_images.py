"""Images of Quire itself, packed from this machine: its Python and system libraries, and for operator and gateway an
environment of their own. Engines get the repository's environment from a read-only volume, because torch is 5 GB.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cluster import images
from cluster.layout import REPOSITORY, Layout

PYTHON = Path(sys.base_prefix)
SMALL = Path("/opt/quire")
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


def pack_small(layout: Layout) -> None:
    """Operator and gateway: Python and what they need, without torch."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _python(root)
        uv = str(REPOSITORY / ".uv" / "bin" / "uv")
        environment = root / SMALL.relative_to("/")
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, environment], check=True)
        subprocess.run(
            [
                *(uv, "pip", "install", "--quiet", "--python", environment / "bin" / "python", "--compile-bytecode"),
                *("-c", REPOSITORY / "constraints.txt", f"{REPOSITORY}[operator,gateway]"),
            ],
            check=True,
        )
        images.pack(layout, "quire-small", root, [], {"PATH": f"{SMALL}/bin", "PYTHONUNBUFFERED": "1"})


def pack_base(layout: Layout) -> None:
    """Engines: Python alone, found where the repository's environment expects it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _python(root)
        (root / REPOSITORY.relative_to("/")).mkdir(parents=True)
        images.pack(layout, "quire-base", root, [], {"PATH": f"{REPOSITORY}/.venv/bin", "PYTHONUNBUFFERED": "1"})


def _python(root: Path) -> None:
    """Python at its own path, every library that it links to, and a writable /tmp."""
    shutil.copytree(PYTHON, root / PYTHON.relative_to("/"), symlinks=True, ignore=LEFT_OUT)
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
