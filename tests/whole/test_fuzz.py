"""Whatever comes over the wire, gateway and engine give it a documented status, and the neighbours notice nothing."""

import contextlib
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from quire_api.openapi import ERRORS, document

MODEL = Path(__file__).parents[2] / "models" / "quire-tiny"
NAME = "quire-tiny"
DEADLINE_S = 240.0
DOCUMENTED = {200, *map(int, ERRORS)}
BODY = b'{"model": "quire-tiny", "prompt": [1, 2, 3], "max_tokens": 2}'
BOUNDED = settings(
    deadline=None,
    derandomize=True,  # what a landing meets is what was met before
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Target:
    """A server under fuzz."""

    url: str

    def ask(self, http: httpx.Client) -> int:
        """A neighbour's honest request."""
        body = {"model": NAME, "prompt": [1, 2, 3], "max_tokens": 2}
        return http.post(f"{self.url}/v1/completions", json=body).status_code

    def send(self, data: bytes) -> bytes:
        """What comes back for `data`, until the end or a moment of silence."""
        parts = urlsplit(self.url)
        got = b""
        with socket.create_connection((parts.hostname, parts.port), DEADLINE_S) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(data)
            connection.settimeout(1.0)
            with contextlib.suppress(OSError):
                while piece := connection.recv(65536):
                    got += piece
        return got


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one `quire serve`."""
    log = tmp_path_factory.mktemp("engine") / "log"
    flags = "--host 127.0.0.1 --port 0 --device cpu --dtype float32 --max-num-seqs 16 --num-gpu-blocks-override 400"
    command = [sys.executable, "-m", "quire", "serve", str(MODEL), "--served-model-name", NAME, *flags.split()]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + DEADLINE_S
        url = ""
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            if found := re.search(r"listening on 127\.0\.0\.1 port (\d+)\n", log.read_text()):
                url = f"http://127.0.0.1:{found[1]}"
                if httpx.get(f"{url}/ready", timeout=DEADLINE_S).status_code == 200:
                    break
            time.sleep(0.1)
        yield url
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=["gateway", "engine"])
def target(request: pytest.FixtureRequest) -> Target:
    if request.param == "gateway":
        up = request.getfixturevalue("up")
        up.wait_routable(2)
        return Target(up.url)
    return Target(request.getfixturevalue("engine"))


@pytest.fixture
def neighbour(target: Target) -> Iterator[None]:
    """Somebody asks and asks over one connection meanwhile; every answer must be 200."""
    statuses: list[int] = []
    problems: list[str] = []
    is_over = threading.Event()

    def ask() -> None:
        with httpx.Client(timeout=DEADLINE_S) as http:
            while not is_over.is_set():
                try:
                    statuses.append(target.ask(http))
                except httpx.HTTPError as error:
                    problems.append(repr(error))
                is_over.wait(0.05)

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    is_over.set()
    thread.join(DEADLINE_S)
    with httpx.Client(timeout=DEADLINE_S) as http:
        statuses.append(target.ask(http))
    assert not problems
    assert set(statuses) == {200}


schema = schemathesis.openapi.from_dict(document())


def short(body: object) -> object:
    """Fuzz may ask for anything but a long answer."""
    if isinstance(body, dict):
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), int):
                body[name] = min(body[name], 2)
        if body.get("model") is not None and len(body) % 2:
            body["model"] = NAME
    return body


@schema.parametrize()
@settings(BOUNDED, max_examples=15)
def test_requests_after_the_document_get_a_documented_status(case, target, neighbour) -> None:
    case.body = short(case.body)
    response = case.call(base_url=target.url, timeout=DEADLINE_S)
    assert response.status_code in DOCUMENTED
    assert response.status_code < 500, response.text
    if response.status_code >= 400 and case.method != "HEAD":
        assert response.json()["error"]["message"]


def request(body: bytes = BODY) -> bytes:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


PIECES = [
    b"\r\n",
    b"\n",
    b"\0",
    b"transfer-encoding: chunked\r\n",
    b"content-length: 5\r\n",
    b"content-length: -1\r\n",
    b"content-length: 99999999999999999999\r\n",
    b"host: y\r\n",
    b"expect: 100-continue\r\n",
    b"connection: close\r\n",
    b"upgrade: h2c\r\nconnection: upgrade\r\n",
    b"x: " + b"a" * 70_000 + b"\r\n",
    b"ffffffffffffffff\r\n",
    b"0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\xff\xfe",
    b'"max_tokens": 1e999, ',
    b'"n": 99999999999999999999999, ',
    b'"prompt": null, ',
    b'"logit_bias": {"x": 1}, ',
]


@st.composite
def broken_requests(draw: st.DrawFn) -> bytes:
    """An honest request, or two behind one another, with pieces put in, cut out, or doubled; or no request at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    data = request() * draw(st.integers(1, 2))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["put", "cut", "double", "flip"])):
            case "put":
                data = data[:at] + draw(st.sampled_from(PIECES) | st.binary(min_size=1, max_size=8)) + data[at:]
            case "cut":
                data = data[:at] + data[at + draw(st.integers(1, 60)) :]
            case "double":
                end = at + draw(st.integers(1, 120))
                data = data[:end] + data[at:end] + data[end:]
            case "flip" if at < len(data):
                data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
    return data


STATUS = re.compile(rb"^HTTP/1\.[01] (\d{3}) ", re.MULTILINE)


def test_broken_bytes_get_a_documented_status_or_a_closed_door(target, neighbour) -> None:
    @settings(BOUNDED, max_examples=60)
    @given(broken_requests())
    def run(data: bytes) -> None:
        answer = target.send(data)
        if answer:
            assert STATUS.match(answer), answer[:200]
        statuses = {int(status) for status in STATUS.findall(answer)} - {100}
        assert statuses <= DOCUMENTED - set(range(500, 600)), (data[:300], answer[:300])

    run()


BODIES = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"{}",
    b'{"model": "quire-tiny"}',
    b'{"model": "quire-tiny", "model": 5, "prompt": "x"}',
    b'{"model": "quire-tiny", "prompt": "\\ud800"}',
    b'{"model": "quire-tiny", "prompt": [-1]}',
    b'{"model": "quire-tiny", "prompt": [99999999999]}',
    b'{"model": "quire-tiny", "prompt": "x", "max_tokens": -1}',
    b'{"model": "quire-tiny", "prompt": "x", "temperature": NaN}',
    b'{"model": "quire-tiny", "prompt": "x", "stop": ["a", 5]}',
    b'{"model": "quire-tiny", "messages": "x"}',
    b'{"model": "' + b"m" * 100_000 + b'"}',
    b"[" * 100_000,
    b'{"model": "quire-tiny", "prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b"\xff\xfe{",
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_wrong_bodies_are_the_clients_error_with_a_sentence(body, target) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        answer = httpx.post(
            f"{target.url}{path}", content=body, headers={"content-type": "application/json"}, timeout=DEADLINE_S
        )
        # To /tokenize many a field means nothing. Of a name given twice the last one counts.
        is_lenient = not path.startswith("/v1/")
        assert 400 <= answer.status_code < 500 or (answer.status_code == 200 and is_lenient), answer.text
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]
