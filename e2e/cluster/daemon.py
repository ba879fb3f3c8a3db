"""Starting and stopping the cluster's processes, by process id."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from cluster.errors import ClusterError
from cluster.layout import Layout


def start(layout: Layout, name: str, arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """Run `arguments` inside the cluster's network, detached; its output goes to the log of that name."""
    layout.logs.mkdir(parents=True, exist_ok=True)
    with _log(layout, name).open("ab") as log:
        process = subprocess.Popen(
            [*layout.inside, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PATH": search_path(layout), **(environment or {})},
        )
    _pid_file(layout, name).parent.mkdir(exist_ok=True)
    _pid_file(layout, name).write_text(str(process.pid))


def stop(layout: Layout, name: str, *, grace_s: float = 0.0) -> None:
    """End the process of that name, at once or after `grace_s` seconds of SIGTERM. No such process: nothing."""
    path = _pid_file(layout, name)
    if not path.exists():
        return
    pid = int(path.read_text())
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM if grace_s else signal.SIGKILL)
        deadline = time.monotonic() + (grace_s or 5.0)
        while _is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        if _is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    path.unlink()


def is_running(layout: Layout, name: str) -> bool:
    path = _pid_file(layout, name)
    return path.exists() and _is_alive(int(path.read_text()))


def wait_for(what: str, holds: Callable[[], bool], deadline_s: float, layout: Layout, daemon: str = "") -> None:
    """Poll until `holds`.

    Raises:
        ClusterError: the deadline passed, or the daemon it waits for has ended; quotes the daemon's log.
    """
    end = time.monotonic() + deadline_s
    while not holds():
        ended = daemon and not is_running(layout, daemon)
        if ended or time.monotonic() > end:
            why = f"{daemon} has ended" if ended else f"not within {deadline_s:.0f} s"
            tail = _log(layout, daemon).read_text(errors="replace")[-1500:] if daemon else ""
            raise ClusterError(f"Waited for {what}: {why}. Logs are in {layout.logs}.\n{tail}")
        time.sleep(0.1)


def run(
    layout: Layout, arguments: list[str], *, timeout_s: float = 60.0, given: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command inside the cluster's network, with the built binaries and the admin's kubeconfig at hand."""
    environment = {**os.environ, "PATH": search_path(layout), "KUBECONFIG": str(layout.kubeconfig())}
    return subprocess.run(
        [*layout.inside, *arguments],
        env=environment,
        input=given,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def search_path(layout: Layout) -> str:
    return os.pathsep.join([str(layout.binaries), os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def _is_alive(pid: int) -> bool:
    """A zombie counts as gone, for an init process may reap slowly, but not while other threads hold its sockets."""
    proc = Path(f"/proc/{pid}")
    try:
        return "\nState:\tZ" not in (proc / "status").read_text() or len(list((proc / "task").iterdir())) > 1
    except FileNotFoundError:
        return False


def _pid_file(layout: Layout, name: str) -> Path:
    return layout.state / "pid" / name


def _log(layout: Layout, name: str) -> Path:
    return layout.logs / f"{name}.log"
