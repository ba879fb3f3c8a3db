"""The agent as a process, as a pod runs it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

DEADLINE_S = 240


class Agent:
    """A running agent; `url` once it has said where its pages are."""

    def __init__(self, folder: Path, destination: Path, source: str, *flags: str) -> None:
        folder.mkdir()
        self.destination = destination
        self.log = folder / "log"
        self.termination_log = folder / "termination-log"
        argv = [sys.executable, "-m", "quire_runtime.agent", "--source", source, "--destination", str(self.destination)]
        argv += ["--host", "127.0.0.1", "--port", "0", "--attempts", "3", "--backoff-s", "0.05"]
        environment = {**os.environ, "QUIRE_TERMINATION_LOG": str(self.termination_log)}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*argv, *flags], stderr=log, stdout=log, env=environment)

    @property
    def url(self) -> str:
        wait_for(lambda: "/progress" in self.log.read_text())
        return self.log.read_text().partition("progress at ")[2].partition("/progress")[0]

    def progress(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/progress", timeout=DEADLINE_S).raise_for_status().json()

    def status(self, path: str) -> int:
        return httpx.get(f"{self.url}{path}", timeout=DEADLINE_S).status_code

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics", timeout=DEADLINE_S).text.splitlines()
        return next(float(line.removeprefix(f"{name} ")) for line in lines if line.startswith(f"{name} "))

    def wait_for_phase(self, phase: str) -> dict[str, Any]:
        wait_for(lambda: self.progress()["phase"] == phase)
        return self.progress()

    def ended(self) -> int:
        return self.process.wait(DEADLINE_S)

    def failure(self) -> tuple[int, str, str]:
        """Exit code, reason and message; a failure is one line and no traceback."""
        code = self.ended()
        said = json.loads(self.termination_log.read_text())
        log = self.log.read_text()
        assert "Traceback" not in log
        assert f"quire agent: {said['message']}" in log
        return code, said["reason"], said["message"]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.ended()


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    started: list[Agent] = []

    def start(source: str, *flags: str, destination: Path = tmp_path / "model") -> Agent:
        started.append(Agent(tmp_path / f"agent-{len(started)}", destination, source, *flags))
        return started[-1]

    yield start
    for agent in started:
        agent.process.kill()
        agent.process.wait()


def held(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_it_is_healthy_once_the_weights_are_there_and_stays(
    bucket: Any, model_files: dict[str, bytes], start: Callable[..., Agent]
):
    bucket.link.hold_after(2 << 20)
    agent = start("s3://models/tiny")
    wait_for(lambda: agent.progress()["bytes_done"] > 0)
    assert agent.status("/healthz") == 503
    standing = agent.progress()
    total = sum(map(len, model_files.values()))
    assert (standing["phase"], standing["bytes_total"]) == ("fetching", total)
    assert 0 < standing["bytes_done"] < total
    bucket.link.release()
    done = agent.wait_for_phase("complete")
    assert done["bytes_done"] == total
    assert agent.status("/healthz") == 200
    assert agent.metric("quire_agent_complete") == 1
    assert agent.metric("quire_agent_model_bytes") == agent.metric("quire_agent_fetched_bytes_total") == total
    assert agent.status("/elsewhere") == 404
    assert held(agent.destination) == model_files
    assert agent.stop() == 0


def test_sigterm_in_the_middle_leaves_what_the_next_start_goes_on_from(
    bucket: Any, model_files: dict[str, bytes], start: Callable[..., Agent]
):
    bucket.link.hold_after(3 << 20)
    first = start("s3://models/tiny")
    wait_for(lambda: first.progress()["bytes_done"] >= 2 << 20)
    assert first.stop() == 143
    assert not first.termination_log.exists()
    bucket.link.release()
    second = start("s3://models/tiny", "--once")
    assert second.ended() == 0
    assert held(second.destination) == model_files
    assert bucket.link.ranges()


def test_a_second_start_fetches_nothing(bucket: Any, start: Callable[..., Agent]):
    assert start("s3://models/tiny", "--once").ended() == 0
    received = bucket.link.received
    again = start("s3://models/tiny")
    standing = again.wait_for_phase("complete")
    assert standing["bytes_done"] == standing["bytes_total"] > 0
    assert again.metric("quire_agent_fetched_bytes_total") == 0
    assert bucket.link.received == received


def test_two_agents_of_one_directory_fetch_once(
    bucket: Any, model_files: dict[str, bytes], start: Callable[..., Agent]
):
    bucket.link.hold_after(2 << 20)
    first = start("s3://models/tiny")
    first.wait_for_phase("fetching")
    second = start("s3://models/tiny")
    assert "another process" in second.wait_for_phase("waiting")["message"]
    bucket.link.release()
    wait_for(lambda: second.progress()["phase"] == "complete")
    assert bucket.link.count("GET") == 1 + len(model_files)
    assert held(second.destination) == model_files


def test_refused_credentials(bucket: Any, start: Callable[..., Agent]):
    bucket.demand_credentials()
    code, reason, message = start("s3://models/tiny").failure()
    assert (code, reason) == (10, "WeightsUnauthorized")
    assert "accessKeyId" in message


def test_a_prefix_that_is_not_there(bucket: Any, start: Callable[..., Agent]):
    assert start("s3://models/absent").failure()[:2] == (11, "WeightsNotFound")


def test_a_disk_that_fills_up_on_the_way(bucket: Any, small_disk: Path, start: Callable[..., Agent]):
    bucket.link.hold_after(2 << 20)
    agent = start("s3://models/tiny", destination=small_disk / "model")
    wait_for(lambda: agent.progress()["bytes_done"] > 0)
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(1 << 16))
    bucket.link.release()
    code, reason, message = agent.failure()
    assert (code, reason) == (12, "DiskFull")
    assert "was full before s3://models/tiny" in message


def test_a_store_that_does_not_answer(bucket: Any, start: Callable[..., Agent]):
    bucket.link.close()
    assert start("s3://models/tiny").failure()[:2] == (13, "SourceUnreachable")


def test_a_source_that_cannot_be(start: Callable[..., Agent]):
    assert start("s3://").failure()[:2] == (2, "InvalidSource")


def test_a_port_that_is_taken(bucket: Any, start: Callable[..., Agent]):
    taken = str(bucket.link.port)
    code, reason, message = start("s3://models/tiny", "--port", taken).failure()
    assert (code, reason) == (1, "PortTaken")
    assert taken in message


def test_the_hub_into_a_directory(hub: Any, start: Callable[..., Agent]):
    agent = start("hf://org/tiny", "--revision", "v1")
    standing = agent.wait_for_phase("complete")
    assert standing["bytes_done"] == standing["bytes_total"] == sum(map(len, held(agent.destination).values()))
    assert (agent.destination / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert agent.stop() == 0
    hub.requests.clear()
    assert start("hf://org/tiny", "--revision", "v1", "--once").ended() == 0
    assert not hub.requests


def test_why_a_store_is_asked_again_is_told_until_it_answers(hub: Any, start: Callable[..., Agent]):
    hub.failing_status = 503
    agent = start("hf://org/tiny", "--attempts", "1000000")
    wait_for(lambda: agent.progress()["reason"] == "SourceUnreachable")
    standing = agent.progress()
    assert standing["phase"] == "starting"
    assert "org/tiny" in standing["message"]
    hub.failing_status = None
    assert agent.wait_for_phase("complete")["reason"] == ""


def test_a_hub_that_wants_a_token(hub: Any, start: Callable[..., Agent]):
    hub.token = "hf_right"
    code, reason, message = start("hf://org/tiny").failure()
    assert (code, reason) == (10, "WeightsUnauthorized")
    assert "HF_TOKEN" in message


def test_a_hub_that_sends_other_bytes_than_it_promised(hub: Any, start: Callable[..., Agent]):
    hub.claimed_sha256 = "0" * 64
    assert start("hf://org/tiny").failure()[:2] == (14, "WeightsCorrupt")


def test_a_mounted_claim_is_verified_and_nothing_else(
    model_files: dict[str, bytes], start: Callable[..., Agent], tmp_path: Path
):
    place = tmp_path / "model"
    place.mkdir()
    for name, content in model_files.items():
        (place / name).write_bytes(content)
    agent = start("pvc://weights/tiny")
    agent.wait_for_phase("complete")
    assert agent.stop() == 0
    assert held(place) == model_files
    shard = place / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    code, reason, message = start("pvc://weights/tiny").failure()
    assert (code, reason) == (14, "WeightsCorrupt")
    assert "pvc://weights/tiny: model-00002-of-00002.safetensors has" in message
    shard.unlink()
    code, reason, message = start("pvc://weights/tiny").failure()
    assert (code, reason) == (11, "WeightsNotFound")
    assert "1 of 2 files" in message


TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
}


def test_the_models_size_is_known_while_its_weights_are_on_their_way(
    hub: Any, start: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
):
    hub.files["config.json"] = json.dumps(TINY_CONFIG).encode()
    agent = start("hf://org/tiny")
    shape = agent.wait_for_phase("complete")["shape"]
    assert shape == {
        "architecture": "LlamaForCausalLM",
        "weight_bytes": len(hub.files["model.safetensors"]),
        "value_bytes": 2,
        "kv_values_per_token": 2 * 3 * 2 * 16,  # keys and values, layers, heads, 64 / 4
        "max_positions": 512,
    }
    asked = [path.rsplit("/", 1)[1] for _, path, _ in hub.requests if "/resolve/" in path]
    assert asked.index("config.json") < asked.index("model.safetensors")


def test_a_model_that_no_engine_could_run_is_not_fetched(hub: Any, start: Callable[..., Agent]):
    hub.files["config.json"] = json.dumps({**TINY_CONFIG, "architectures": ["MambaForCausalLM"]}).encode()
    agent = start("hf://org/tiny")
    code, reason, message = agent.failure()
    assert (code, reason) == (17, "UnsupportedArchitecture")
    assert "MambaForCausalLM is not supported" in message
    assert not any("model.safetensors" in path for _, path, _ in hub.requests if "/resolve/" in path)


def test_the_size_of_what_a_claim_holds_is_told_too(tmp_path: Path, start: Callable[..., Agent]):
    model = Path(__file__).parents[3] / "models" / "quire-tiny"
    shape = start("pvc://weights/tiny", destination=model).wait_for_phase("complete")["shape"]
    assert shape["weight_bytes"] == sum(path.stat().st_size for path in model.glob("*.safetensors"))


def test_progress_is_for_whoever_has_the_internal_key(
    hub: Any, start: Callable[..., Agent], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("QUIRE_INTERNAL_KEY", "sesame")
    agent = start("hf://org/tiny")
    with httpx.Client(base_url=agent.url, timeout=DEADLINE_S) as http:
        wait_for(lambda: http.get("/healthz").status_code == 200)
        assert http.get("/progress").status_code == 401
        assert http.get("/progress", headers={"x-quire-internal-key": "sesam"}).status_code == 401
        told = http.get("/progress", headers={"x-quire-internal-key": "sesame"})
    assert told.json()["phase"] == "complete"
