"""`quire up` under load with the real engine and gateway: one replica becomes two, none, and one again."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from quire_api import wire

MODEL = Path(__file__).parents[2] / "models" / "quire-tiny"
DEADLINE_S = 240.0
COMMAND = (sys.executable, "-m", "quire", "up")

RESOURCE = f"""
apiVersion: quire.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: tiny}}
spec:
  model: {{source: "file://{MODEL}"}}
  engine: {{device: cpu, dtype: float32, kvCache: {{memory: 16Mi}}, extraArgs: [--max-num-seqs, "8"]}}
  autoscaling:
    minReplicas: 0
    maxReplicas: 2
    targets: {{inFlightPerReplica: 4}}
    scaleDownDelay: 4s
    idleTimeout: 6s
"""


class Running:
    """A `quire up` of a deployment that may sleep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "a.yaml").write_text(RESOURCE)
        self.seen: dict[int, psutil.Process] = {}
        self.start()

    def start(self) -> None:
        with (self.folder / "up.log").open("ab") as log:
            self.process = psutil.Popen(
                [*COMMAND, str(self.folder / "a.yaml"), "--port=0", f"--state-dir={self.folder / 'state'}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "XDG_STATE_HOME": str(self.folder / "xdg"), "OMP_NUM_THREADS": "1"},
            )

    def end(self) -> None:
        self.seen |= {child.pid: child for child in self.process.children(recursive=True)}
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(DEADLINE_S) == 0, self.log()

    def log(self) -> str:
        return (self.folder / "up.log").read_text()

    def status(self) -> dict:
        try:
            return json.loads((self.folder / "state/status.json").read_text())["items"][0]["status"]
        except (FileNotFoundError, IndexError):
            return {}

    def ready(self) -> tuple[str, str]:
        return next(
            ((c["status"], c["reason"]) for c in self.status().get("conditions", ()) if c["type"] == "Ready"), ("", "")
        )

    def serves(self, count: int) -> bool:
        status = self.status()
        return self.ready()[0] == "True" and status["readyReplicas"] == status["replicas"] == count

    def sleeps(self) -> bool:
        return self.ready() == ("True", "ScaledToZero") and self.status()["replicas"] == 0

    def engines(self) -> list[psutil.Process]:
        return [child for child in self.process.children() if _is_engine(child)]

    def wait(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not what():
            assert time.monotonic() < deadline, self.log()
            assert self.process.poll() is None, self.log()
            time.sleep(0.1)

    def ask(self, **body) -> httpx.Response:
        body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True, **body}
        return httpx.post(f"{self.status()['url']}/completions", json=body, timeout=DEADLINE_S)

    @contextmanager
    def streams(self, count: int) -> Iterator[list[str]]:
        """So many clients that stream one answer after the other; yields what went wrong."""
        is_over, failures = threading.Event(), []
        body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 200, "ignore_eos": True, "stream": True}

        def work() -> None:
            with httpx.Client(timeout=DEADLINE_S) as client:
                while not is_over.is_set():
                    with client.stream("POST", f"{url}/completions", json=body) as answer:
                        lines = [line for line in answer.iter_lines() if line]
                        if answer.status_code != 200 or lines[-1] != "data: [DONE]":
                            failures.append(f"{answer.status_code}: {lines[-1]}")

        url = self.status()["url"]
        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield failures
        finally:
            is_over.set()
            for thread in threads:
                thread.join()


def _is_engine(process: psutil.Process) -> bool:
    try:
        return "serve" in process.cmdline()
    except psutil.Error:
        return False


@pytest.fixture
def up(tmp_path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    for process in [running.process, *running.seen.values()]:
        if process.is_running():
            process.kill()


def test_load_scales_up_idleness_to_zero_and_a_request_wakes(up):
    up.wait(lambda: up.serves(1))
    with up.streams(8) as failures:
        up.wait(lambda: up.serves(2))
    assert not failures
    assert re.search(r"tiny scales 1 -> 2: [5-8] requests in flight or held, 4 to a replica", up.log())

    up.wait(up.sleeps)
    assert "-> 0: no request for 6s" in up.log()
    up.wait(lambda: not up.engines())

    answer = up.ask()
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 4
    assert answer.headers[wire.HEADER_QUEUE_POSITION] == "1"
    assert int(answer.headers[wire.HEADER_QUEUE_MS]) > 0
    assert "tiny scales 0 -> 1: 1 request held for the first replica" in up.log()

    up.wait(up.sleeps)
    up.end()
    up.start()
    time.sleep(1.0)
    up.wait(up.sleeps)
    assert up.log().count("starts (pid") == 3, "what slept before the restart sleeps on"
    assert up.ask().status_code == 200
    up.end()
