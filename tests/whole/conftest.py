"""The whole path as a user meets it: `quire up` on a resource file, two engine processes, the gateway, real sockets."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil
import pytest

MODEL = Path(__file__).parents[2] / "models" / "quire-tiny"
NAME = "quire-tiny"
DEADLINE_S = 240.0

RESOURCE = """\
apiVersion: quire.dev/v1alpha1
kind: LLMDeployment
metadata:
  name: {name}
spec:
  model:
    source: file://{model}
  engine:
    device: cpu
    dtype: float32
    extraArgs: ["--max-num-seqs", "32", "--num-gpu-blocks-override", "1024"]
  replicas: 2
"""


# SIGUSR2 has the main thread of any process stand still while its other threads live; once more lets it go on.
STAND_STILL = """
import signal, time
standing = []
def stand(*_):
    if standing:
        standing.clear()
        return
    standing.append(True)
    while standing:
        time.sleep(0.2)
signal.signal(signal.SIGUSR2, stand)
"""


@dataclass(frozen=True)
class Up:
    """A running `quire up`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    resource: Path

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=2 * DEADLINE_S)

    def routable(self) -> list[str]:
        """Ids of the replicas that the gateway routes to."""
        try:
            report = httpx.get(f"{self.url}/internal/v1/replicas", timeout=DEADLINE_S)
        except httpx.HTTPError:
            return []
        if not report.is_success:
            return []
        return [replica["replica"] for replica in report.json()["replicas"] if replica["is_routable"]]

    def engines(self) -> list[psutil.Process]:
        """The `quire serve` processes that answer for a replica, oldest first."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.Error):  # it may have just ended
                if "serve" in child.cmdline():
                    found.append(child)
        return sorted(found, key=lambda child: child.create_time())

    def wait_routable(self, count: int) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while len(self.routable()) != count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"{self.routable()}\n{self.log.read_text()}"
            time.sleep(0.1)


def address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the gateway is, once `quire up` has said so."""
    deadline = time.monotonic() + DEADLINE_S
    while not (said := re.search(r"gateway at (http://\S+?)/v1\b", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return said[1]


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    resource = folder / "resource.yaml"
    resource.write_text(RESOURCE.format(name=NAME, model=MODEL))
    (folder / "sitecustomize.py").write_text(STAND_STILL)
    log = folder / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "quire",
                "up",
                str(resource),
                "--port=0",
                f"--state-dir={folder / 'state'}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A new engine is awaited for as long as a busy machine takes to start one.
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "QUIRE_GATEWAY_HOLD_TIMEOUT_S": str(DEADLINE_S),
                "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
            },
            start_new_session=True,
        )
    try:
        running = Up(process, address(process, log), log, resource)
        running.wait_routable(2)
        yield running
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) == 0, log.read_text()
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def client(up: Up) -> openai.OpenAI:
    return up.client()
