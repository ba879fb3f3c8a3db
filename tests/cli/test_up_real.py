"""`quire up` with the real engine and gateway on the repository's own small model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

MODEL = Path(__file__).parents[2] / "models" / "quire-tiny"
DEADLINE_S = 240.0

RESOURCE = """
apiVersion: quire.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: tiny}}
spec:
  model: {{source: "file://{model}"}}
  engine: {{device: cpu, dtype: float32, kvCache: {{memory: 16Mi}}, extraArgs: {extra}}}
  replicas: {replicas}
  rollout: {{drainTimeout: 60s}}
"""


class Running:
    """A `quire up` and everything it has started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write(1)
        self._log = (folder / "up.log").open("wb")
        self.process = psutil.Popen(
            [
                sys.executable,
                "-m",
                "quire",
                "up",
                str(folder / "a.yaml"),
                "--port=0",
                "--gateway-workers=2",
                f"--state-dir={folder / 'state'}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, "XDG_STATE_HOME": str(folder / "xdg"), "OMP_NUM_THREADS": "1"},
        )
        self.seen: dict[int, psutil.Process] = {}

    def write(self, replicas: int, extra: tuple[str, ...] = ("--max-num-seqs", "8")) -> None:
        text = RESOURCE.format(model=MODEL, replicas=replicas, extra=json.dumps(extra))
        (self.folder / "a.yaml.new").write_text(text)
        (self.folder / "a.yaml.new").rename(self.folder / "a.yaml")

    def engines(self) -> list[psutil.Process]:
        self.descendants()
        return [child for child in self.process.children() if _is_engine(child)]

    def descendants(self) -> list[psutil.Process]:
        """Everything below `quire up` that has ever been seen and still lives."""
        if _lives(self.process):
            self.seen |= {child.pid: child for child in self.process.children(recursive=True)}
        return [process for process in self.seen.values() if _lives(process)]

    def status(self) -> dict:
        try:
            return json.loads((self.folder / "state/status.json").read_text())["items"][0]["status"]
        except (FileNotFoundError, IndexError):
            return {}

    def serves(self, count: int) -> bool:
        status = self.status()
        ready = {c["type"]: c["status"] for c in status.get("conditions", ())}.get("Ready")
        return ready == "True" and status["readyReplicas"] == status["replicas"] == count

    def wait(self, what: Callable[[], object], *, ends: bool = False) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not what():
            said = (self.folder / "up.log").read_text()
            assert time.monotonic() < deadline, said
            assert ends or self.process.poll() is None, said
            time.sleep(0.1)

    def ask(self) -> int:
        """Tokens of one short answer through the gateway."""
        body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}
        answer = httpx.post(f"{self.status()['url']}/completions", json=body, timeout=DEADLINE_S)
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]["completion_tokens"]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_engine(process: psutil.Process) -> bool:
    try:
        return "serve" in process.cmdline()
    except psutil.Error:
        return False


@pytest.fixture
def up(tmp_path) -> Iterator[Running]:
    running = Running(tmp_path)
    yield running
    for process in [*running.descendants(), running.process]:
        if process.is_running():
            process.kill()
    running.process.wait()


def test_scaling_under_a_stream_a_crash_and_ctrl_c(up):
    up.wait(lambda: up.serves(1))
    model = up.status()["model"]
    assert model["architecture"] == "Qwen3ForCausalLM"
    assert model["contextLength"] > 0
    assert up.ask() == 4

    up.write(2)
    up.wait(lambda: up.serves(2))
    assert len(up.engines()) == 2

    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 400, "ignore_eos": True, "stream": True}
    streams = [httpx.Client(timeout=DEADLINE_S) for _ in range(4)]
    answers = [
        client.send(client.build_request("POST", f"{up.status()['url']}/completions", json=body), stream=True)
        for client in streams
    ]
    lines = [answer.iter_lines() for answer in answers]
    for each in lines:
        assert next(each).startswith("data:")
    up.write(1)
    for each in lines:
        assert [line for line in each if line][-1] == "data: [DONE]"
    up.wait(lambda: up.serves(1) and len(up.engines()) == 1)

    (engine,) = up.engines()
    engine.send_signal(signal.SIGKILL)
    up.wait(lambda: engine not in up.engines() and len(up.engines()) == 1 and up.serves(1))
    assert up.ask() == 4

    (engine,) = up.engines()
    (worker,) = engine.children()
    worker.send_signal(signal.SIGKILL)
    up.wait(lambda: engine not in up.engines() and len(up.engines()) == 1 and up.serves(1))
    assert (up.folder / "up.log").read_text().count("is down") == 2
    assert up.ask() == 4

    up.descendants()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(DEADLINE_S) == 0
    up.wait(lambda: not up.descendants(), ends=True)


def test_a_flag_that_the_engine_does_not_know_starts_nothing_and_nothing_outlives_a_killed_up(up):
    up.wait(lambda: up.serves(1))
    up.write(1, ("--no-such-flag",))

    def ready() -> dict:
        return next(c for c in up.status()["conditions"] if c["type"] == "Ready")

    up.wait(lambda: "--no-such-flag" in ready()["message"])
    assert ready()["reason"] == "InvalidSpec"
    assert up.ask() == 4
    assert len(up.engines()) == 1
    said = (up.folder / "up.log").read_text()
    assert said.count(" starts (pid") == 1
    assert "is down" not in said

    assert len(up.descendants()) >= 3  # gateway, server, engine
    up.process.kill()
    up.process.wait()
    up.wait(lambda: not up.descendants(), ends=True)
