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

from quire import LLM, SamplingParams

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
    command += ["--dtype", "float32"]
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


@pytest.fixture(scope="module")
def on_cpu() -> LLM:
    return LLM(MODEL, device="cpu", dtype="float32", max_model_len=512, num_gpu_blocks_override=64)


@pytest.mark.parametrize("question", ["What is Quire?", "What is 2 + 3?"])
def test_a_chat_says_what_the_cpu_says_streamed_and_whole(client: openai.OpenAI, on_cpu: LLM, question: str):
    asked = ask(question)
    params = SamplingParams(temperature=0, max_tokens=asked["max_tokens"])
    expected = on_cpu.chat(asked["messages"], params, use_tqdm=False)[0].outputs[0]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected.text
    assert chunks[-1].choices[0].finish_reason == expected.finish_reason == "stop"
    assert client.chat.completions.create(**asked).choices[0].message.content == expected.text
