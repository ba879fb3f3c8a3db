"""`quire serve` as a user starts it: its own process, a real engine process, real sockets."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

DEADLINE_S = 300.0
ENGINE_FLAGS = ["--device", "cpu", "--dtype", "float32", "--max-num-seqs", "16"]


@dataclass
class Server:
    """A running `quire serve`."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=DEADLINE_S)

    def http(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE_S, headers=headers)

    def wait_listening(self) -> None:
        """From here on `url` is known."""

        def listens() -> bool:
            said = self.log.read_text()
            assert self.process.poll() is None, said
            if found := re.search(r"listening on 127\.0\.0\.1 port (\d+)\n", said):
                self.url = f"http://127.0.0.1:{found[1]}"
            return found is not None

        eventually(listens)

    def wait_ready(self) -> None:
        def answers() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return httpx.get(f"{self.url}/ready", timeout=DEADLINE_S).status_code == 200
            except httpx.HTTPError:
                return False

        eventually(answers)

    def metric(self, name: str, **labels: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=DEADLINE_S).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        raise AssertionError(f"no metric {name} {labels}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


StartServer = Callable[..., Server]


def eventually(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def model_directory(tiny_model_dir) -> Path:
    return tiny_model_dir("qwen3", max_position_embeddings=4096)


@pytest.fixture(scope="session")
def start_server(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """`start_server(*flags, model=..., environment=None, wait=True)`; all of them are stopped at the end."""
    started: list[Server] = []

    def start(
        *flags: str,
        model: str = str(model_directory),
        environment: dict[str, str] | None = None,
        wait: bool = True,
    ) -> Server:
        command = [sys.executable, "-m", "quire", "serve", model, "--host", "127.0.0.1"]
        command += ["--port", "0", "--served-model-name", "tiny", "small", *ENGINE_FLAGS, *flags]
        log = tmp_path_factory.mktemp("server") / "log"
        surroundings = {name: value for name, value in os.environ.items() if not name.startswith("QUIRE_")}
        process = subprocess.Popen(
            command,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
            env={**surroundings, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
        server = Server(process, "", log)
        started.append(server)
        server.wait_listening()
        if wait:
            server.wait_ready()
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server: StartServer) -> Server:
    """One for all tests that only ask."""
    return start_server("--num-gpu-blocks-override", "400")


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    return server.client()
