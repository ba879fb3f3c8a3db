"""Bad input: each gets its status and an OpenAI error object, and nothing else is disturbed."""

import json
import socket
import time

import httpx
import openai
import pytest

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "tiny", "prompt": "hi"}


@pytest.fixture(scope="module", autouse=True)
def nothing_leaks(server):
    """After every bad request of this page no request is in flight and no block is held."""
    yield
    names = ("quire:http_requests_in_flight", "vllm:num_requests_running", "quire:kv_blocks_used")
    deadline = time.monotonic() + 60
    while held := {name: value for name in names if (value := server.metric(name))}:
        assert time.monotonic() < deadline, held
        time.sleep(0.05)


BAD_CHATS = {
    "no messages": ({"model": "tiny"}, "messages is required", "messages"),
    "messages of a wrong type": ({**CHAT, "messages": "hi"}, "must be a list", "messages"),
    "a role of a wrong type": ({**CHAT, "messages": [{"role": 1}]}, "must be a text", "messages[0].role"),
    "no message": ({**CHAT, "messages": []}, "at least one message", "messages"),
    "an image": (
        {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "text only",
        "messages[0].content",
    ),
    "tools": ({**CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]}, "Tools are not", "tools"),
    "a JSON schema": ({**CHAT, "response_format": {"type": "json_object"}}, "not supported", "response_format"),
    "audio": ({**CHAT, "modalities": ["text", "audio"]}, "not supported", "modalities"),
    "top_logprobs alone": ({**CHAT, "top_logprobs": 3}, "needs logprobs", "top_logprobs"),
    "too many top_logprobs": ({**CHAT, "logprobs": True, "top_logprobs": 50}, "from 0 to 20", "top_logprobs"),
    "stream_options alone": ({**CHAT, "stream_options": {"include_usage": True}}, "needs stream", "stream_options"),
    "its own template": ({**CHAT, "chat_template": "x"}, "not taken from requests", "chat_template"),
    "max_tokens 0": ({**CHAT, "max_tokens": 0}, "at least 1", "max_tokens"),
    "max_tokens below 0": ({**CHAT, "max_completion_tokens": -5}, "at least 1", "max_completion_tokens"),
    "max_tokens beyond reason": ({**CHAT, "max_tokens": 2**40}, "at most 2147483647", "max_tokens"),
    "a priority beyond reason": ({**CHAT, "priority": 2**40}, "at most 2147483647", "priority"),
    "a user who says nothing": ({**CHAT, "messages": [{"role": "user"}]}, "is required", "messages[0].content"),
    "a message that is none": ({**CHAT, "messages": [1]}, "must be an object", "messages[0]"),
    "calls that are none": (
        {**CHAT, "messages": [{"role": "assistant", "content": "a", "tool_calls": 5}]},
        "must be a list of objects",
        "messages",
    ),
    "calls that hold none": (
        {**CHAT, "messages": [{"role": "assistant", "content": "a", "tool_calls": [5]}]},
        "must be a list of objects",
        "messages",
    ),
    "arguments without a bottom": (
        {
            **CHAT,
            "messages": [
                {"role": "assistant", "content": "a", "tool_calls": [{"function": {"arguments": "[" * 100_000}}]}
            ],
        },
        "not JSON",
        "messages",
    ),
    "too many stop strings": ({**CHAT, "stop": [f"end {i}" for i in range(257)]}, "256 is the limit", "stop"),
    "a text as temperature": ({**CHAT, "temperature": "warm"}, "must be a number", "temperature"),
    "temperature below 0": ({**CHAT, "temperature": -1}, "at least 0", "temperature"),
    "top_p above 1": ({**CHAT, "top_p": 1.5}, "at most 1", "top_p"),
    "n 0": ({**CHAT, "n": 0}, "from 1 to 128", "n"),
    "an empty stop": ({**CHAT, "stop": [""]}, "empty string", "stop"),
    "stop of a wrong type": ({**CHAT, "stop": [1]}, "a text or a list of texts", "stop"),
    "min above max": ({**CHAT, "max_tokens": 2, "min_tokens": 3}, "not be above max_tokens", "min_tokens"),
    "a bias for no token": ({**CHAT, "logit_bias": {"x": 1}}, "token ids to numbers", "logit_bias"),
    "a bias outside the vocabulary": ({**CHAT, "logit_bias": {"99999": 1}}, "outside the vocabulary", "logit_bias"),
    "a template variable": ({**CHAT, "chat_template_kwargs": {"messages": []}}, "must not set", "messages"),
}
BAD_COMPLETIONS = {
    "no prompt": ({"model": "tiny"}, "prompt is required", "prompt"),
    "an empty prompt": ({**TEXT, "prompt": ""}, "prompt is empty", "prompt"),
    "an empty prompt among others": ({**TEXT, "prompt": ["a", ""]}, "prompt is empty", "prompt"),
    "a number as prompt": ({**TEXT, "prompt": 5}, "must be a text", "prompt"),
    "a mixed prompt": ({**TEXT, "prompt": [1, "a"]}, "must be a text", "prompt"),
    "a token outside": ({**TEXT, "prompt": [5, 100000]}, "outside the vocabulary", "prompt"),
    "a negative token": ({**TEXT, "prompt": [[-1]]}, "outside the vocabulary", "prompt"),
    "suffix": ({**TEXT, "suffix": "end"}, "not supported", "suffix"),
    "best_of": ({**TEXT, "best_of": 3}, "not supported", "best_of"),
    "a window that overflows": ({**TEXT, "prompt": [5] * 5000}, "4096", None),
    "max_tokens 0 without echo": ({**TEXT, "max_tokens": 0}, "at least 1", "max_tokens"),
    "streamed prompt_logprobs": ({**TEXT, "stream": True, "prompt_logprobs": 1}, "stream", "prompt_logprobs"),
}
CASES = [("/v1/chat/completions", *case) for case in BAD_CHATS.items()]
CASES += [("/v1/completions", *case) for case in BAD_COMPLETIONS.items()]


def error_of(answer: httpx.Response) -> dict:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(("path", "name", "case"), CASES, ids=[f"{path[4:8]}: {name}" for path, name, _ in CASES])
def test_bad_requests_are_400_and_say_why(server, path, name, case):
    body, says, param = case
    with server.http() as http:
        answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] is not None
    if param is not None:
        assert error["param"] == param


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_are_refused_by_name(server, value):
    content = json.dumps(CHAT)[:-1] + f', "temperature": {value}}}'
    with server.http() as http:
        answer = http.post("/v1/chat/completions", content=content)
    assert answer.status_code == 400
    assert error_of(answer)["param"] == "temperature"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "tiny", "prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\ud800 NaN"}',
        b'{"prompt": "a", "cache_salt": "\\ud800 NaN"}',
        b'{"prompt": "a", "NaN \\ud800": 1}',
        b"[" * 100_000,
    ],
)
def test_bodies_that_are_no_json_object_are_400(server, content):
    with server.http() as http:
        answer = http.post("/v1/completions", content=content)
    assert answer.status_code == 400
    assert error_of(answer)["message"]
    assert error_of(answer)["code"] in ("invalid_json", "too_many_values")


def test_an_unknown_model_is_404(server):
    """In the words of the gateway, wherever the name stands."""
    client = server.client()
    for ask in (lambda: client.completions.create(model="other", prompt="a"), lambda: client.models.retrieve("other")):
        with pytest.raises(openai.NotFoundError) as caught:
            ask()
        assert (caught.value.code, caught.value.type) == ("model_not_found", "invalid_request_error")
        assert caught.value.body["message"] == "The model 'other' does not exist. Served here: tiny, small."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**CHAT, "n": 0}, "n"),
        ({**CHAT, "temperature": -1}, "temperature"),
        ({**CHAT, "stop": ""}, "stop"),
        ({**CHAT, "messages": []}, "messages"),
        ({**CHAT, "priority": 2**40}, "priority"),
        ({**CHAT, "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ],
)
def test_a_value_out_of_its_range_has_the_code_of_openai(server, body, param):
    with server.http() as http:
        error = error_of(http.post("/v1/chat/completions", json=body))
    assert (error["code"], error["param"]) == ("invalid_value", param)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/v1/nothing", 404, "unknown_url"), ("GET", "/v1/completions", 405, "method_not_allowed")],
)
def test_wrong_paths_and_methods(server, method, path, status, code):
    with server.http() as http:
        answer = http.request(method, path)
    assert answer.status_code == status
    assert error_of(answer)["code"] == code


def test_a_prompt_beyond_the_window_names_the_code(server):
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().completions.create(model="tiny", prompt="word " * 4000, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_text_far_beyond_the_window_is_refused_unread(server, path):
    text = "word " * 4_000_000
    asked = {"prompt": text} if path == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
    with server.http() as http:
        answer = http.post(path, json={"model": "tiny", **asked})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "context_length_exceeded"
    assert "has at least" in error_of(answer)["message"]


@pytest.mark.parametrize("value", ["soon", "1e3", "9" * 30, "9" * 5000])
def test_a_priority_header_that_is_none_is_400(server, value):
    with server.http() as http:
        answer = http.post("/v1/completions", json={**TEXT, "max_tokens": 1}, headers={"x-quire-priority": value})
    assert answer.status_code == 400
    assert "x-quire-priority" in error_of(answer)["message"]


def test_the_name_of_an_unknown_model_is_not_repeated_without_bound(server):
    with server.http() as http:
        answer = http.post("/v1/completions", json={**TEXT, "model": "x" * 100_000})
    assert answer.status_code == 404
    assert len(error_of(answer)["message"]) < 1000


def test_unknown_fields_are_ignored_and_named(server):
    with server.http() as http:
        answer = http.post("/v1/completions", json={**TEXT, "max_tokens": 1, "frobnicate": 1, "ähm": {}})
    assert answer.status_code == 200
    assert answer.headers["x-quire-warning"] == "ignored unknown fields: frobnicate, \\xe4hm"
    with server.http() as http:
        assert "x-quire-warning" not in http.post("/v1/completions", json={**TEXT, "max_tokens": 1}).headers


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_over_the_limit_is_413(start_server, small_body_server, is_announced):
    content = json.dumps({**TEXT, "prompt": "x" * 200_000}).encode()

    def pieces():
        for start in range(0, len(content), 4096):
            yield content[start : start + 4096]

    with small_body_server.http() as http:
        answer = http.post("/v1/completions", content=content if is_announced else pieces())
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "body_too_large"
        assert http.post("/v1/completions", json={**TEXT, "max_tokens": 1}).status_code == 200


def test_the_limit_is_noticed_before_the_body_ends(small_body_server):
    host, port = small_body_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n{")
        assert b" 413 " in connection.recv(65536).split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00 no HTTP at all\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\n", 431),
        (b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nX-A: " + b"b" * 10_000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_http_gets_an_error_object(server, request_bytes, status):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(request_bytes)
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    with server.http() as http:
        assert http.get("/health").status_code == 200


def test_request_ids_are_kept_and_echoed(server):
    with server.http() as http:
        answer = http.post("/v1/completions", json={**TEXT, "max_tokens": 1}, headers={"x-request-id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.json()["id"] == "cmpl-mine-1"
        assert len(http.get("/health", headers={"x-request-id": "has space"}).headers["x-request-id"]) == 32
        assert (
            http.post("/v1/completions", content=b"{", headers={"x-request-id": "m2"}).headers["x-request-id"] == "m2"
        )


@pytest.fixture(scope="module")
def small_body_server(start_server):
    return start_server("--num-gpu-blocks-override", "40", "--max-body-bytes", "64Ki", "--max-model-len", "256")
