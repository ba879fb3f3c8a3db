"""The servers that are measured, each a process (tree) of its own in front of one stub engine on port `engine`."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from quire_api import wire

HERE = Path(__file__).parents[1]
KEY = "key of the engine"
LITELLM = "litellm[proxy]==1.108.7"
_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log {folder}/access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""
_LITELLM = """
model_list:
  - model_name: m
    litellm_params: {{ model: openai/m, api_base: "http://127.0.0.1:{engine}/v1", api_key: none }}
litellm_settings: {{ num_retries: 0, telemetry: false }}
"""


@dataclass
class Server:
    name: str
    port: int
    pid: int

    def cpu_s(self) -> float:
        """User and system seconds of the process and its children."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory_mb(self) -> float:
        return sum(process.memory_info().rss for process in self._tree()) / 2**20

    def _tree(self) -> list[psutil.Process]:
        first = psutil.Process(self.pid)
        return [first, *first.children(recursive=True)]


@contextlib.contextmanager
def _child(command: list[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, env={**os.environ, **(env or {})})
        try:
            yield process
        finally:
            with contextlib.suppress(psutil.Error):
                for each in psutil.Process(process.pid).children(recursive=True):
                    each.kill()
            process.kill()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int, process: "subprocess.Popen[bytes]", log: Path, seconds: float = 600.0) -> None:
    until = time.monotonic() + seconds
    while True:
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"it does not listen: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.1)


@contextlib.contextmanager
def engine(folder: Path, step_s: float) -> Iterator[Server]:
    command = [sys.executable, "-m", "gateway_bench.stub", "engine", str(step_s)]
    with _child(command, folder / "engine.log", {"PYTHONPATH": str(HERE)}) as process:
        assert process.stdout is not None
        yield Server("engine", int(process.stdout.readline()), process.pid)


@contextlib.contextmanager
def forwarder(folder: Path, engine: int) -> Iterator[Server]:
    command = [sys.executable, "-m", "gateway_bench.stub", "forward", str(engine)]
    with _child(command, folder / "forward.log", {"PYTHONPATH": str(HERE)}) as process:
        assert process.stdout is not None
        yield Server("byte copy on uvloop", int(process.stdout.readline()), process.pid)


@contextlib.contextmanager
def quire_server(folder: Path, gap_s: float) -> Iterator[Server]:
    """The real server with a simulated engine in it, which makes a token each `gap_s`."""
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "gateway_bench.chaos_engine", str(port), KEY, str(gap_s)]
    with _child(command, log, {"PYTHONPATH": str(HERE)}) as process:
        _wait(port, process, log)
        yield Server("quire server", port, process.pid)


@contextlib.contextmanager
def quire(folder: Path, engine: int, name: str = "quire gateway", key: str = "") -> Iterator[Server]:
    """key: of the engine, if it has one; only then the gateway learns its model."""
    table, port = folder / "table.json", free_port()
    replica = wire.Replica(id="stub", url=f"http://127.0.0.1:{engine}")
    deployment = wire.Deployment(
        name="bench", namespace="default", served_names=["m"], internal_key=key, replicas=[replica]
    )
    table.write_bytes(msgspec.json.encode(wire.RoutingTable(deployments=[deployment])))
    command = [sys.executable, "-m", "quire_gateway", "--port", str(port), "--routing-table", str(table)]
    log = folder / "gateway.log"
    with _child([*command, "--access-log", str(folder / "access.jsonl")], log) as process:
        _wait(port, process, log)
        yield Server(name, port, process.pid)


@contextlib.contextmanager
def nginx(folder: Path, engine: int) -> Iterator[Server]:
    port, config, log = free_port(), folder / "nginx.conf", folder / "nginx.log"
    config.write_text(_NGINX.format(folder=folder, engine=engine, port=port))
    with _child([_nginx_binary(folder), "-e", str(folder / "error.log"), "-c", str(config)], log) as process:
        _wait(port, process, log)
        yield Server("nginx", port, process.pid)


@contextlib.contextmanager
def litellm(folder: Path, engine: int) -> Iterator[Server]:
    port, config, log = free_port(), folder / "litellm.yaml", folder / "litellm.log"
    config.write_text(_LITELLM.format(engine=engine))
    command = [str(_litellm_venv(folder) / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1"]
    env = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        # Without a key it refuses to start; with one it would check it, which nobody else here does.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    with _child([*command, "--port", str(port), "--num_workers", "1"], log, env) as process:
        _wait(port, process, log)
        yield Server("LiteLLM proxy", port, process.pid)


def _nginx_binary(folder: Path) -> str:
    """The installed one, or Debian's package unpacked into `folder`; nothing is installed."""
    found = shutil.which("nginx")
    if found is not None:
        return found
    subprocess.run(["apt-get", "download", "-qq", "nginx"], cwd=folder, check=True, stderr=subprocess.DEVNULL)
    package = next(folder.glob("nginx_*.deb"))
    subprocess.run(["dpkg", "-x", str(package), str(folder / "unpacked")], check=True)
    return str(folder / "unpacked" / "usr" / "sbin" / "nginx")


def _litellm_venv(folder: Path) -> Path:
    """A throw-away environment."""
    venv, uv = folder / "venv", str(HERE.parent / ".uv" / "bin" / "uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", str(venv / "bin" / "python"), LITELLM], check=True)
    return venv
