"""`quire up` with a model that lies in a bucket: fetched with the Secret of its file, once for all replicas."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

MODEL = Path(__file__).parents[2] / "models" / "quire-tiny"
DEADLINE_S = 120.0

RESOURCE = """
apiVersion: quire.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: tiny}}
spec:
  model: {{source: "s3://quire-models/{prefix}", auth: {{secretRef: {{name: bucket}}}}}}
  engine: {{device: cpu, dtype: float32, kvCache: {{memory: 16Mi}}, extraArgs: ["--max-num-seqs", "8"]}}
---
apiVersion: v1
kind: Secret
metadata: {{name: bucket}}
stringData: {{accessKeyId: reader, secretAccessKey: secret, region: us-east-1, endpoint: "{endpoint}"}}
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server with quire-tiny under s3://quire-models/tiny."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="admin", aws_secret_access_key="admin"
    )
    client.create_bucket(Bucket="quire-models")
    for path in MODEL.iterdir():
        if path.is_file():
            client.upload_file(str(path), "quire-models", f"tiny/{path.name}")
    yield url
    server.stop()


@pytest.fixture
def up(tmp_path: Path, endpoint: str) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def up(prefix: str) -> subprocess.Popen[bytes]:
        (tmp_path / "a.yaml").write_text(RESOURCE.format(prefix=prefix, endpoint=endpoint))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        places = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_STATE_HOME": str(tmp_path / "xdg")}
        with (tmp_path / "up.log").open("wb") as log:
            argv = [sys.executable, "-m", "quire", "up", str(tmp_path / "a.yaml")]
            process = subprocess.Popen(
                [*argv, "--port=0", f"--state-dir={tmp_path / 'state'}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**clean, **places, "OMP_NUM_THREADS": "1"},
            )
        started.append(process)
        return process

    yield up
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def wait_for_line(log: Path, text: str) -> str:
    end = time.monotonic() + DEADLINE_S
    while True:
        for line in log.read_text().splitlines():
            if text in line:
                return line
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def test_a_model_in_a_bucket_is_fetched_and_answers(up: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path):
    process = up("tiny")
    line = wait_for_line(tmp_path / "up.log", "http://127.0.0.1:")
    url = "http://" + line.partition("http://")[2].split()[0].rstrip("/.,").removesuffix("/v1")
    wait_for_line(tmp_path / "up.log", "Ready=True")
    asked = {"model": "tiny", "prompt": "Once", "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{url}/v1/completions", json=asked, timeout=DEADLINE_S).raise_for_status().json()
    assert answer["usage"]["completion_tokens"] == 4
    (place,) = (tmp_path / "cache/quire/models").iterdir()
    assert (place / "config.json").read_bytes() == (MODEL / "config.json").read_bytes()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def test_a_prefix_that_is_not_there_is_the_reason_shown(up: Callable[[str], subprocess.Popen[bytes]], tmp_path: Path):
    up("absent")
    assert "s3://quire-models/absent" in wait_for_line(tmp_path / "up.log", "WeightsNotFound")
