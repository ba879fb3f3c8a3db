"""Start, keys, hang-ups, overload, drain and death of a server."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

LONG = {"model": "tiny", "prompt": "block", "max_tokens": 3000, "stream": True, "ignore_eos": True}
DEADLINE_S = 300.0


def eventually(is_so) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def is_quiet(server) -> bool:
    """Nothing runs and no block is held."""
    names = ("quire:http_requests_in_flight", "vllm:num_requests_running", "quire:kv_blocks_used")
    return all(server.metric(name) == 0 for name in names)


def engine_of(server) -> psutil.Process:
    [engine] = psutil.Process(server.process.pid).children()
    assert "quire_runtime.engine.process" in engine.cmdline()
    return engine


def events(lines) -> list:
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_hangs_up_frees_its_blocks(server, is_streamed):
    aborted = server.metric("quire:request_success_total", finished_reason="abort")
    with server.http() as http:
        if is_streamed:
            with http.stream("POST", "/v1/completions", json=LONG) as answer:
                next(answer.iter_lines())
        else:
            request = http.build_request("POST", "/v1/completions", json={**LONG, "stream": False, "n": 3})
            with socket.create_connection((request.url.host, request.url.port), DEADLINE_S) as connection:
                head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request.content)}\r\n\r\n"
                connection.sendall(head.encode() + request.content)
                eventually(lambda: server.metric("vllm:num_requests_running") > 0)
    eventually(lambda: server.metric("quire:request_success_total", finished_reason="abort") > aborted)
    eventually(lambda: is_quiet(server))


def test_a_stop_string_frees_the_blocks(server):
    answer = server.client().completions.create(
        model="tiny", prompt="block", max_tokens=3000, stop=list("aeinost.,# "), extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "stop"
    eventually(lambda: is_quiet(server))


@pytest.fixture(scope="module")
def guarded(start_server):
    """A server with keys and a queue of one."""
    return start_server(
        *("--api-key", "alpha", "beta", "--num-gpu-blocks-override", "300"),
        *("--max-num-queued-reqs", "1", "--max-num-seqs", "1"),
        environment={"QUIRE_INTERNAL_KEY": "inner"},
    )


def test_keys_are_needed_once_set(guarded):
    for key in ("alpha", "beta"):
        assert guarded.client(key).completions.create(model="tiny", prompt="a", max_tokens=1)
    for key in ("gamma", "alph", "inner"):
        with pytest.raises(openai.AuthenticationError) as caught:
            guarded.client(key).models.list()
        assert caught.value.code == "invalid_api_key"
    with guarded.http() as http:
        for path in ("/health", "/ready", "/metrics", "/version"):
            assert http.get(path).status_code == 200
        for path in ("/v1/models", "/nothing", "/docs", "/tokenize"):
            assert http.get(path).status_code == 401
        assert http.get("/v1/models", headers={"authorization": "alpha"}).status_code == 401
        assert http.get("/internal/v1/model").status_code == 403
        assert http.get("/internal/v1/model", headers={"authorization": "Bearer alpha"}).status_code == 403
    with guarded.http(**{"x-quire-internal-key": "inner"}) as http:
        assert http.get("/internal/v1/model").status_code == 200
        assert http.get("/v1/models").status_code == 200


def test_the_caches_of_two_keys_are_apart(guarded):
    def cached(key: str) -> int:
        answer = guarded.client(key).completions.create(model="tiny", prompt="one two three " * 8, max_tokens=1)
        return answer.usage.prompt_tokens_details.cached_tokens

    assert [cached("alpha"), cached("beta"), cached("alpha") > 0, cached("beta") > 0] == [0, 0, True, True]


def test_internal_headers_need_the_internal_key(guarded):
    def cached(**headers: str) -> int:
        with guarded.http(**headers) as http:
            answer = http.post("/v1/completions", json={"model": "tiny", "prompt": "salt " * 30, "max_tokens": 1})
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    inner = {"x-quire-internal-key": "inner"}
    key = {"authorization": "Bearer alpha"}
    assert cached(**inner, **{"x-quire-cache-salt": "a"}) == 0
    assert cached(**inner, **{"x-quire-cache-salt": "a"}) > 0
    assert cached(**inner, **{"x-quire-cache-salt": "b"}) == 0
    assert cached(**key, **{"x-quire-cache-salt": "a"}) == 0


def test_more_than_the_queue_holds_is_429_with_retry_after(guarded):
    def ask(http: httpx.Client) -> httpx.Response:
        return http.send(http.build_request("POST", "/v1/completions", json=LONG), stream=True)

    with guarded.http(authorization="Bearer alpha") as http, ThreadPoolExecutor(1) as pool:
        running = ask(http)
        waiting = pool.submit(ask, http)
        eventually(lambda: guarded.metric("vllm:num_requests_waiting") == 1)
        refused = [http.post("/v1/completions", json=LONG) for _ in range(2)]
        running.close()
        assert waiting.result().status_code == 200
        waiting.result().close()
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in refused] == [(429, "queue_full")] * 2
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert guarded.metric("vllm:admission_rejections_total", reason="queue_full") == 2


def test_it_answers_probes_while_it_loads_and_drains_on_sigterm(start_server, tmp_path):
    held = tmp_path / "held"
    os.mkfifo(held)
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nif 'quire_runtime.engine.process' in sys.orig_argv:\n    open({str(held)!r}).close()\n"
    )
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    flags = ["--num-gpu-blocks-override", "600", "--shutdown-timeout", str(DEADLINE_S)]
    server = start_server(*flags, environment={"PYTHONPATH": paths}, wait=False)

    def probe(path: str) -> int:
        try:
            return httpx.get(f"{server.url}{path}", timeout=DEADLINE_S).status_code
        except httpx.ConnectError:
            return 0

    eventually(lambda: probe("/health") == 200)
    assert probe("/ready") == 503
    refused = httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=DEADLINE_S)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
    held.write_bytes(b"")
    server.wait_ready()
    engine = engine_of(server)
    with server.http() as http, http.stream("POST", "/v1/completions", json={**LONG, "max_tokens": 1500}) as answer:
        lines = answer.iter_lines()
        next(lines)
        engine.suspend()
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: probe("/ready") == 503)
        refused = httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=DEADLINE_S)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert refused.headers["retry-after"]
        assert probe("/health") == 200
        engine.resume()
        rest = events(lines)
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(DEADLINE_S) == 0


def test_sigterm_ends_it_while_it_fetches_its_model(start_server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub = f"http://127.0.0.1:{silent.getsockname()[1]}"
        server = start_server(model="hf://org/name", environment={"HF_ENDPOINT": hub}, wait=False)
        silent.settimeout(DEADLINE_S)
        asked, _ = silent.accept()
        engine = engine_of(server)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(DEADLINE_S) == 0
        assert not engine.is_running()
        asked.close()


@pytest.mark.parametrize(
    ("send", "code"),
    [
        (lambda server: server.terminate(), 0),
        (lambda server: os.killpg(server.pid, signal.SIGINT), 0),  # Ctrl-C in a terminal
        (lambda server: os.killpg(server.pid, signal.SIGHUP), 0),  # the terminal is closed
        (lambda server: server.kill(), -signal.SIGKILL),
    ],
    ids=["terminate", "interrupt", "hangup", "kill"],
)
def test_a_signal_while_both_processes_import_ends_both(model_directory, tmp_path, send, code):
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "quire", "serve", str(model_directory), "--host", "127.0.0.1", "--port", "0"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    children = psutil.Process(server.pid).children
    eventually(lambda: children() or server.poll() is not None)
    [engine] = children()
    send(server)
    assert server.wait(DEADLINE_S) == code
    eventually(lambda: not engine.is_running())
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("timeout_s", "signals"), [("0", 1), (str(DEADLINE_S), 2)])
def test_what_is_broken_off_by_an_end_is_told_so(start_server, timeout_s, signals):
    server = start_server("--num-gpu-blocks-override", "600", "--shutdown-timeout", timeout_s)
    with server.http() as http, http.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()
        next(lines)
        engine_of(server).send_signal(signal.SIGHUP)  # as a terminal that closes
        engine_of(server).suspend()
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: "draining 1 requests" in server.log.read_text())
        for _ in range(signals - 1):
            server.process.send_signal(signal.SIGINT)
        rest = events(lines)
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["error"]["code"] == "draining"
    assert ("did not end in time" in server.log.read_text()) == (signals == 1)
    assert server.process.wait(DEADLINE_S) == 0


def test_the_death_of_the_engine_ends_the_server(start_server, tmp_path):
    environment = {"QUIRE_TERMINATION_LOG": str(tmp_path / "why")}
    server = start_server("--num-gpu-blocks-override", "600", environment=environment)
    with server.http() as http, http.stream("POST", "/v1/completions", json=LONG) as answer:
        lines = answer.iter_lines()
        next(lines)
        engine_of(server).kill()
        rest = events(lines)
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["error"]["type"] == "service_unavailable_error"
    assert server.process.wait(DEADLINE_S) == 1
    why = json.loads((tmp_path / "why").read_text())
    assert why["reason"] == "EngineKilled"
    assert "killed by signal 9" in why["message"]


STOPS_IN_THE_MIDST_OF_ITS_WEIGHTS = """
import sys
if "quire_runtime.engine.process" in sys.orig_argv:
    import os, time
    from quire_runtime.engine import load as loading, progress
    progress.TOLD_EVERY_S = 0.0
    load_weights = loading.load_weights
    def stop(model, directory, read, **rest):
        def reads(done, total):
            read(done, total)
            while 2 * done > total and not os.path.exists(os.environ["GO_ON"]):
                time.sleep(0.05)
        return load_weights(model, directory, reads, **rest)
    loading.load_weights = stop
"""


def test_ready_says_how_far_the_load_is_and_the_log_has_the_times_of_the_start(start_server, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(STOPS_IN_THE_MIDST_OF_ITS_WEIGHTS)
    paths = [str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "GO_ON": str(tmp_path / "go")}
    server = start_server("--num-gpu-blocks-override", "600", environment=environment, wait=False)
    told = []

    def says_a_share() -> bool:
        answer = httpx.get(f"{server.url}/ready", timeout=DEADLINE_S)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
        told.append(answer.json()["error"]["message"])
        return "(weights, " in told[-1]

    eventually(says_a_share)
    assert re.fullmatch(r"The model is being loaded \(weights, [5-9]\d %\)\. /ready tells when .*", told[-1])
    asked = httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=DEADLINE_S)
    assert (asked.status_code, asked.json()["error"]["code"]) == (503, "loading")
    (tmp_path / "go").touch()
    server.wait_ready()
    number = r"\d+\.\d"
    phases = ", ".join(f"{name} {number}" for name in ("import", "fetch", "weights", "memory", "kernels", "graphs"))
    assert re.search(rf"ready after {number} s \({phases}\): tiny, small\n", server.log.read_text())
    server.client().completions.create(model="tiny", prompt="a", max_tokens=1)
    first = rf"first token {number} s after the start, \d+\.\d\d s after its request\n"
    eventually(lambda: re.search(first, server.log.read_text()))


LOSES_ITS_GPU = """
import sys
if "quire_runtime.engine.process" in sys.orig_argv:
    import torch
    from quire_runtime.engine.engine import Engine
    step, seen = Engine.step, []
    def lose(engine):
        outputs = step(engine)
        if outputs is not None and len(outputs.handles):
            seen.append(1)
            if len(seen) == 5:
                raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\\nCUDA kernel errors")
        return outputs
    Engine.step = lose
"""


def test_a_gpu_lost_in_the_middle_is_told_to_the_client_on_stderr_and_in_the_termination_log(start_server, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(LOSES_ITS_GPU)
    paths = [str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "QUIRE_TERMINATION_LOG": str(tmp_path / "why")}
    server = start_server("--num-gpu-blocks-override", "600", environment=environment)
    with server.http() as http, http.stream("POST", "/v1/completions", json=LONG) as answer:
        told = events(answer.iter_lines())
    assert json.loads(told[0])["choices"][0]["text"] is not None
    assert told[-1] == "[DONE]"
    error = json.loads(told[-2])["error"]
    assert error["code"] == "engine_dead"
    assert server.process.wait(DEADLINE_S) == 1
    said = server.log.read_text().strip().splitlines()[-1]
    why = json.loads((tmp_path / "why").read_text())
    assert why["reason"] == "GPULost"
    for words in (error["message"], said, why["message"]):
        assert "the GPU failed (CUDA error: uncorrectable ECC error encountered)" in words
        assert "dmesg, lines with Xid" in words


def start_and_wait(*arguments: str, log: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "quire", "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "OMP_NUM_THREADS": "1", "QUIRE_TERMINATION_LOG": str(log), **environment},
        check=False,
    )


def test_a_port_in_use_is_one_line(server, model_directory, tmp_path):
    port = server.url.rsplit(":", 1)[1]
    ended = start_and_wait(str(model_directory), "--host", "127.0.0.1", "--port", port, log=tmp_path / "why")
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines() == [
        f"quire: port {port} of 127.0.0.1 is in use. Stop the program that uses it, or choose another with --port."
    ]
    assert json.loads((tmp_path / "why").read_text())["reason"] == "CannotListen"


def test_a_certificate_that_is_not_there_is_one_line(model_directory, tmp_path):
    flags = ("--host", "127.0.0.1", "--port", "0", "--ssl-certfile", "/nowhere.pem")
    ended = start_and_wait(str(model_directory), *flags, log=tmp_path / "why")
    assert ended.returncode == 2
    assert ended.stderr.strip().splitlines() == [
        "quire: The certificate /nowhere.pem or its key cannot be used (No such file or directory). "
        "Check --ssl-certfile and --ssl-keyfile."
    ]


def test_a_path_that_no_file_can_have_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ended = start_and_wait("/x" * 3000, "--host", "127.0.0.1", "--port", "0", log=tmp_path / "why")
    assert ended.returncode == 2, ended.stderr[-2000:]
    assert ended.stderr.strip().splitlines()[-1].startswith("quire: The model directory /x")
    assert [path.name for path in tmp_path.iterdir()] == ["why"]


def assert_refused(ended: subprocess.CompletedProcess[str], log: Path, says: str, reason: str) -> None:
    """A start that ends with a sentence and a reason in the termination log."""
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("quire: ")
    assert says in last
    assert "Traceback" not in ended.stderr
    assert json.loads(log.read_text())["reason"] == reason


@pytest.mark.parametrize(
    ("spoil", "says", "reason"),
    [
        (lambda path: (path / "tokenizer.json").write_text("{"), "tokenizer.json", "MalformedTokenizer"),
        (
            lambda path: (path / "config.json").write_text('{"architectures": ["Unheard"]}'),
            "Unheard",
            "UnsupportedArchitecture",
        ),
    ],
)
def test_a_model_that_cannot_be_served_is_exit_code_2(model_directory, tmp_path, spoil, says, reason):
    shutil.copytree(model_directory, tmp_path / "model")
    spoil(tmp_path / "model")
    ended = start_and_wait(str(tmp_path / "model"), "--host", "127.0.0.1", "--port", "0", log=tmp_path / "why")
    assert_refused(ended, tmp_path / "why", says, reason)


@pytest.mark.parametrize(
    ("flags", "says", "reason"),
    [
        (("--device", "cuda"), "torch can use no GPU here: ", "NoSuchDevice"),
        (("--device", "cpu", "--max-model-len", "400000000"), "above the model's own limit of 4096", "DoesNotFit"),
        (("--device", "cpu", "--num-gpu-blocks-override", "1000000000"), "beside the weights there are", "DoesNotFit"),
    ],
    ids=["no GPU", "too long a window", "too many blocks"],
)
def test_a_machine_that_cannot_do_what_is_asked_is_exit_code_2(model_directory, tmp_path, flags, says, reason):
    arguments = (str(model_directory), "--host", "127.0.0.1", "--port", "0", *flags)
    ended = start_and_wait(*arguments, log=tmp_path / "why", CUDA_VISIBLE_DEVICES="")
    assert_refused(ended, tmp_path / "why", says, reason)


POISON = 319
"""A token whose embedding is not a number."""


@pytest.fixture(scope="module")
def poisoned_model(tiny_model_dir, tmp_path_factory) -> str:
    directory = shutil.copytree(
        tiny_model_dir("llama", max_position_embeddings=4096), tmp_path_factory.mktemp("poisoned") / "model"
    )
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = torch.nan
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    return str(directory)


def test_a_request_whose_logits_are_not_numbers_fails_alone(start_server, poisoned_model):
    server = start_server("--num-gpu-blocks-override", "600", model=poisoned_model)
    neighbour = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    biased = {**neighbour, "logit_bias": {str(POISON): -100}}
    with server.http() as http, ThreadPoolExecutor(1) as pool:
        alone = http.post("/v1/completions", json=biased).json()["choices"]
        beside = pool.submit(http.post, "/v1/completions", json=biased)
        refused = http.post("/v1/completions", json={**neighbour, "prompt": [5, POISON, 7]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (500, "request_failed")
        assert "not a number" in refused.json()["error"]["message"]
        assert beside.result().status_code == 200
        assert beside.result().json()["choices"] == alone
        assert http.post("/v1/completions", json=biased).json()["choices"] == alone
    assert server.metric("vllm:num_requests_running") == 0
    assert server.stop() == 0
