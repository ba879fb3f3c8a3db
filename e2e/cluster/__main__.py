"""`python -m cluster`: build, up, down, and commands inside."""

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cluster import add_ons, build, control_plane, daemon, network, node, outside, pki, quire_images, teardown
from cluster.errors import ClusterError
from cluster.layout import API_PORT, Layout

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
LAYOUT = Layout(**({"name": os.environ["QUIRE_CLUSTER"]} if os.environ.get("QUIRE_CLUSTER") else {}))
"""QUIRE_CLUSTER names another one beside it."""
NODE_PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ipset": "ipset",
    "ip": "iproute2",
    "socat": "socat",
    "ethtool": "ethtool",
}


@app.command("build")
def build_all(tools: Annotated[bool, typer.Option(help="Also helm, kwok and what runs on a node.")] = True) -> None:
    """Build Kubernetes and its tools from Go modules: minutes the first time, seconds after."""
    _timed("kube", lambda: build.build_kube(LAYOUT))
    for tool in build.TOOLS if tools else ():
        _timed(tool, lambda tool=tool: build.build_tool(LAYOUT, tool))


@app.command("images")
def build_images(
    runtime: Annotated[bool, typer.Option(help="Also the engine's image: torch makes it 5 GB.")] = False,
    record: Annotated[Path | None, typer.Option(help="Keep size and time of what is built in this file.")] = None,
) -> None:
    """Build Quire's images with buildah, without a network, from a Debian base."""
    found = json.loads(record.read_text())["images"] if record and record.exists() else {}
    for name in (*quire_images.SMALL, *([quire_images.RUNTIME] if runtime else [])):
        began = time.monotonic()
        sizes = quire_images.build(LAYOUT, [name])
        seconds, file = time.monotonic() - began, quire_images.archive(LAYOUT, name)
        print(f"{name:24s} {seconds:6.1f} s  {sizes.get(name, 'as it was'):>10s}  {file}", flush=True)
        if name in sizes:
            size = {"image": sizes[name], "archive_bytes": file.stat().st_size}
            found[name] = {**size, "seconds": round(seconds, 1), "load_average_15m": round(os.getloadavg()[2], 1)}
    quire_images.pack_engine_base(LAYOUT)
    if record:
        text = "make images IMAGES=full (seconds: with the download of wheels that are not there yet)"
        told = {"command": text, "date": datetime.now(UTC).date().isoformat(), "cpus": os.cpu_count(), "images": found}
        record.write_text(json.dumps(told, indent=1) + "\n")


@app.command()
def up(
    with_node: Annotated[bool, typer.Option("--node/--control-plane", help="A real node, or the API alone.")] = True,
) -> None:
    """Bring the cluster up from nothing."""
    if LAYOUT.namespace.exists():
        raise ClusterError("the cluster is up already (or was not taken down): `python -m cluster down` first.")
    if not (LAYOUT.binaries / "kube").exists():
        raise ClusterError("nothing is built yet: `python -m cluster build` first.")
    if with_node:
        _check_packages()
    _timed("network, certificates", lambda: (network.create(LAYOUT), pki.write_pki(LAYOUT)))
    _timed("control plane", lambda: control_plane.start(LAYOUT))
    if with_node:
        _timed("images", lambda: add_ons.pack(LAYOUT))
        _timed("node", lambda: node.start(LAYOUT))
        _timed("add-ons", lambda: (add_ons.apply(LAYOUT), add_ons.wait(LAYOUT)))
    print(f"up. Commands inside: {sys.executable} -m cluster exec kubectl get nodes")


@app.command()
def down(keep_state: Annotated[bool, typer.Option(help="Keep logs and data.")] = False) -> None:
    """Take the cluster down and leave nothing behind."""
    teardown.down(LAYOUT, keep_state=keep_state)


@app.command("outside")
def share(port: Annotated[int, typer.Option(help="Port on this machine's loopback.")] = API_PORT) -> None:
    """Let the machine reach the API server from outside of the cluster's network, until ended."""
    outside.share(LAYOUT, port)


@app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def execute(command: list[str]) -> None:
    """Run a command inside the cluster's network with its kubeconfig, for example: exec kubectl get pods."""
    environment = {**os.environ, "PATH": daemon.search_path(LAYOUT), "KUBECONFIG": str(LAYOUT.kubeconfig())}
    sys.exit(subprocess.run([*LAYOUT.inside, *command], env=environment, check=False).returncode)


def _check_packages() -> None:
    folders = daemon.search_path(LAYOUT).split(os.pathsep)
    missing = [
        package
        for command, package in NODE_PACKAGES.items()
        if not any((Path(folder) / command).exists() for folder in folders)
    ]
    if not Path(node.CNI_PLUGINS, "bridge").exists():
        missing.append("containernetworking-plugins")
    if missing:
        raise ClusterError(f"a node needs more of Debian: apt-get install {' '.join(missing)}")


def _timed(what: str, work: object) -> None:
    start = time.monotonic()
    work()  # type: ignore[operator]
    print(f"{what:24s} {time.monotonic() - start:6.1f} s", flush=True)


def main() -> None:
    try:
        app()
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        sys.exit(2)


main()
