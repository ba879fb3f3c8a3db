"""`quire logs`: what the engines of a deployment say, in a cluster or under `quire up`."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from quire.cluster.api import Api, ClusterRefused, Manifest, NotFound, deployments_path
from quire.cluster.choice import Where
from quire.up.state import folder_of, is_locked, read_status
from quire_api.errors import UserError
from quire_api.v1alpha1 import LABEL_DEPLOYMENT

POLL_S = 0.3


class NoLogs(UserError):
    """There is nothing to show, and why."""


def run_logs(
    name: str,
    where: Where,
    *,
    container: str = "engine",
    is_previous: bool = False,
    is_followed: bool = False,
    tail: int = 100,
    replica: str = "",
    out: TextIO = sys.stdout,
) -> None:
    """Print the last `tail` lines of each replica (-1: all), and with `is_followed` what comes.

    Raises:
        NoLogs, NoState, NoCluster, ClusterUnreachable, ClusterRefused
    """
    api = where.cluster()
    if api is None:
        if is_previous or container != "engine":
            raise NoLogs(
                "under `quire up` one log holds every run of a replica, the download of its model included; "
                "leave --previous and --container out"
            )
        _local(name, where.state_dir, is_followed, tail, replica, out)
        return
    _of_cluster(api, where.namespace_of(api), name, container, is_previous, is_followed, tail, replica, out)


def _of_cluster(
    api: Api,
    namespace: str,
    name: str,
    container: str,
    is_previous: bool,
    is_followed: bool,
    tail: int,
    replica: str,
    out: TextIO,
) -> None:
    if not namespace:
        raise NoLogs("logs are of one deployment: name its namespace with -n instead of -A")
    pods = _pods(api, namespace, name, replica)
    containers = {entry["name"] for pod in pods for entry in _containers(pod)}
    if container not in containers:
        why = " (a model from file:// or pvc:// needs none)" if container == "agent" else ""
        raise NoLogs(f"{name} has no container {container}{why}; there are: {', '.join(sorted(containers))}")
    parameters = {"container": container}
    if tail >= 0:
        parameters["tailLines"] = str(tail)
    if is_previous:
        parameters["previous"] = "true"
    if is_followed:
        parameters["follow"] = "true"
    trouble: list[str] = []

    def show(pod: str) -> None:
        prefix = f"[{pod}] " if len(pods) > 1 else ""
        try:
            with api.lines(f"/api/v1/namespaces/{namespace}/pods/{pod}/log", parameters) as lines:
                for line in lines:
                    print(f"{prefix}{line}", file=out, flush=True)
        except UserError as error:
            if isinstance(error, ClusterRefused) and is_previous and error.status == 400:
                trouble.append(f"{pod}: no run of {container} has ended there before")
            else:
                trouble.append(f"{pod}: {error}")

    names = [pod["metadata"]["name"] for pod in pods]
    if is_followed:
        threads = [threading.Thread(target=show, args=(pod,), daemon=True) for pod in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        for pod in names:
            show(pod)
    if len(trouble) == len(names):
        raise NoLogs("; ".join(trouble))
    for line in trouble:
        print(f"quire: {line}", file=sys.stderr)


def _pods(api: Api, namespace: str, name: str, replica: str) -> list[Manifest]:
    pods = api.items(f"/api/v1/namespaces/{namespace}/pods", f"{LABEL_DEPLOYMENT}={name}")
    if not pods:
        try:
            api.get(deployments_path(namespace, name))
        except NotFound:
            names = [item["metadata"]["name"] for item in api.items(deployments_path(namespace))]
            known = f"there are: {', '.join(names)}" if names else "there is none"
            raise NoLogs(f"no LLMDeployment {name} in namespace {namespace}; {known}") from None
        raise NoLogs(f"{name} has no replica now; `quire status {name} -n {namespace} -v` says why")
    chosen = [pod for pod in pods if replica in ("", pod["metadata"]["name"])]
    if not chosen:
        names = [pod["metadata"]["name"] for pod in pods]
        raise NoLogs(f"{name} has no replica {replica}; there are: {', '.join(names)}")
    return chosen


def _containers(pod: Manifest) -> list[Manifest]:
    spec = pod["spec"]
    return [*spec.get("containers", []), *spec.get("initContainers", [])]


def _local(name: str, state_dir: Path | None, is_followed: bool, tail: int, replica: str, out: TextIO) -> None:
    document, _ = read_status(state_dir)
    folder = folder_of(state_dir)
    names = [item["metadata"]["name"] for item in document.get("items", [])]
    if name not in names:
        raise NoLogs(f"`quire up` serves no {name}; it has: {', '.join(names)}")
    others = [other for other in names if other.startswith(f"{name}-")]
    files = [
        file
        for file in sorted((folder / "logs").glob(f"{name}-*.log"))
        if not any(file.name.startswith(f"{other}-") for other in others) and replica in ("", file.stem)
    ]
    if not files:
        raise NoLogs(f"{name} has no log" + (f" of a replica {replica}" if replica else " yet"))
    prefixes = {file: f"[{file.stem}] " if len(files) > 1 else "" for file in files}
    readers = {file: file.open(errors="replace") for file in files}
    for file, reader in readers.items():
        lines = reader.readlines()
        _print(lines if tail < 0 else lines[len(lines) - min(tail, len(lines)) :], prefixes[file], out)
    while is_followed and is_locked(folder):
        for file, reader in readers.items():
            _print(_whole_lines(reader), prefixes[file], out)
        time.sleep(POLL_S)


def _whole_lines(reader: TextIO) -> Iterator[str]:
    while line := reader.readline():
        yield line


def _print(lines: Sequence[str] | Iterator[str], prefix: str, out: TextIO) -> None:
    for line in lines:
        print(f"{prefix}{line.rstrip()}", file=out, flush=True)
