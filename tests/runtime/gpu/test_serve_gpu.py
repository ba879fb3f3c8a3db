"""`quire serve` on a GPU, over real sockets."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

MODEL = Path(__file__).parents[3] / "models" / "quire-tiny"
DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "quire", "serve", str(MODEL), "--device", "cuda", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--served-model-name", "quire-tiny", "--kv-cache-memory", "1Gi"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=dict(os.environ))
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=5).is_success:
                    break
            except httpx.HTTPError:
                pass
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()


def ask(question: str) -> dict:
    messages = [{"role": "user", "content": question}]
    return {"model": "quire-tiny", "messages": messages, "temperature": 0, "max_tokens": 100}


def test_streamed_chat(client: openai.OpenAI):
    chunks = list(client.chat.completions.create(**ask("What is Quire?"), stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    print(text)
    assert "quire" in text.lower()
    assert chunks[-1].choices[0].finish_reason == "stop"
    whole = client.chat.completions.create(**ask("What is Quire?"))
    assert whole.choices[0].message.content == text


def test_a_sum(client: openai.OpenAI):
    answer = client.chat.completions.create(**ask("What is 2 + 3?")).choices[0].message.content
    print(answer)
    assert "5" in answer
