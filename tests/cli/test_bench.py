"""`quire bench` against an endpoint of a few lines, and the arithmetic of its figures."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import pytest
from rich.console import Console

from quire.address import BadAddress
from quire.bench import NothingMeasured, NotWritable, Sample, distribution, figures_of, histogram, plan_for, run_bench
from quire.chat import ServerRefused, ServerUnreachable, connect, first_model, is_ready
from quire_api.errors import UserError

DEADLINE_S = 60.0


class Endpoint:
    """Streams five pieces an answer, once `together` requests have come; `refuse(n)`: does the n-th get a 429?"""

    def __init__(self) -> None:
        self.refuse = lambda number: False
        self.breaks = False
        self.key = ""
        self.gap_s = 0.0
        self.together = 0
        self.bodies: list[dict] = []
        self.running = self.most_running = 0
        self.hangs_from = sys.maxsize
        self.changed = threading.Condition()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if endpoint.key and self.headers["authorization"] != f"Bearer {endpoint.key}":
                    self.answer(401, b'{"error": {"message": "The API key is missing or wrong."}}')
                    return
                self.answer(200, json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with endpoint.changed:
                    endpoint.bodies.append(body)
                    number = len(endpoint.bodies)
                    endpoint.changed.notify_all()
                if endpoint.refuse(number):
                    self.answer(429, b'{"error": {"message": "slow down", "code": "too_many"}}')
                elif number >= endpoint.hangs_from:
                    self.rfile.read(1)  # until the client goes
                else:
                    self.stream("messages" in body)

            def stream(self, is_chat: bool) -> None:
                with endpoint.changed:
                    endpoint.running += 1
                    endpoint.most_running = max(endpoint.most_running, endpoint.running)
                    endpoint.changed.wait_for(lambda: len(endpoint.bodies) >= endpoint.together, DEADLINE_S)
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                for number in range(5):
                    time.sleep(endpoint.gap_s)
                    piece = {"delta": {"content": "x"}} if is_chat else {"text": "x"}
                    self.event({"choices": [{"index": 0, **piece}]})
                    if endpoint.breaks and number == 2:
                        self.event({"error": {"message": "the replica failed"}})
                        return
                details = {"cached_tokens": 4}
                usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": details}
                self.event({"choices": [], "usage": usage})
                with endpoint.changed:  # before the client can know that this was the end
                    endpoint.running -= 1
                self.wfile.write(b"data: [DONE]\n\n")

            def event(self, data: dict) -> None:
                self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

            def answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


def measured(endpoint: Endpoint, tmp_path, **settings) -> dict:
    file = tmp_path / "figures.json"
    console = Console(width=200, quiet=True)
    settings = {"model": "m", "requests": 12, **settings}
    run_bench(plan_for(endpoint.url, **settings), json_file=str(file), console=console)
    return json.loads(file.read_text())


def test_a_closed_loop_keeps_so_many_clients_busy(endpoint, tmp_path):
    endpoint.gap_s = 0.01
    figures = measured(endpoint, tmp_path, concurrency=3)
    assert (figures["requests"], figures["failed"], figures["plan"]["loop"]) == (12, 0, "closed")
    assert endpoint.most_running <= 3
    assert (figures["output_tokens"], figures["prompt_tokens"], figures["cached_tokens"]) == (60, 120, 48)
    assert figures["ttft_ms"]["p50"] >= 10
    assert figures["total_ms"]["p50"] >= 50


def test_an_open_loop_asks_whatever_the_server_does(endpoint, tmp_path):
    endpoint.together = 12
    figures = measured(endpoint, tmp_path, rate=200.0)
    assert figures["plan"]["loop"] == "open"
    assert endpoint.most_running == 12
    assert figures["failed"] == 0


def test_arrivals_are_random_at_the_rate_and_the_same_for_a_seed():
    plan = plan_for("http://x", model="m", requests=2000, rate=50.0, seed=3)
    due = plan.due()
    assert due == plan.due()
    assert due[-1] == pytest.approx(40.0, rel=0.1)
    gaps = [b - a for a, b in pairwise(due)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread == pytest.approx(mean, rel=0.1), "exponential gaps: the deviation is the mean"


def test_prompts_share_as_many_words_as_asked():
    prompts = plan_for("http://x/v1/", model="m", requests=3, input_words=20, shared_words=15).prompts()
    words = [prompt.split() for prompt in prompts]
    assert {len(each) for each in words} == {20}
    assert len({tuple(each[:15]) for each in words}) == 1
    assert len({tuple(each[15:]) for each in words}) == 3


def test_the_body_is_what_was_asked_for(endpoint, tmp_path):
    measured(endpoint, tmp_path, requests=1, output_tokens=7, temperature=0.5)
    (chat,) = endpoint.bodies
    assert (chat["max_tokens"], chat["temperature"], chat["stream"]) == (7, 0.5, True)
    assert len(chat["messages"][0]["content"].split()) == 128
    assert "ignore_eos" not in chat
    measured(endpoint, tmp_path, requests=1, api="completions", ignore_eos=True)
    assert endpoint.bodies[1]["ignore_eos"] is True
    assert isinstance(endpoint.bodies[1]["prompt"], str)


def test_the_first_model_is_taken_by_default(endpoint, tmp_path):
    assert measured(endpoint, tmp_path, model="", requests=1)["plan"]["model"] == "m"


def test_failures_are_counted_by_reason_and_kept_out_of_the_times(endpoint, tmp_path):
    endpoint.refuse = lambda number: number % 3 == 0
    figures = measured(endpoint, tmp_path)
    assert (figures["failed"], figures["errors"]) == (4, {"429 too_many": 4})
    assert figures["output_tokens"] == 40


def test_the_server_s_sentence_is_told(endpoint, capsys):
    endpoint.refuse = lambda number: number == 2
    run_bench(plan_for(endpoint.url, model="m", requests=3), console=Console(width=150))
    assert "1 failed: 429 too_many: slow down\n" in capsys.readouterr().out
    endpoint.refuse = lambda number: True
    with pytest.raises(NothingMeasured, match=r"no request was answered: 429 too_many: slow down$"):
        run_bench(plan_for(endpoint.url, model="m", requests=3), console=Console(quiet=True))


def test_ctrl_c_tells_what_was_measured_and_that_it_is_not_all(endpoint):
    endpoint.hangs_from = 5
    command = [sys.executable, "-m", "quire", "bench", endpoint.url, "--concurrency", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with endpoint.changed:
        assert endpoint.changed.wait_for(lambda: len(endpoint.bodies) == 5, DEADLINE_S)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (130, "")
    assert "m at " in out
    assert ": 4 requests, 1 at a time" in out


def test_a_stream_that_breaks_is_a_failure(endpoint, tmp_path):
    endpoint.breaks = True
    with pytest.raises(NothingMeasured, match="the replica failed"):
        measured(endpoint, tmp_path, requests=2)


def test_json_on_standard_output_is_all_there_is(endpoint, capsys):
    run_bench(plan_for(endpoint.url, model="m", requests=2), json_file="-")
    assert json.loads(capsys.readouterr().out)["requests"] == 2


def test_the_table_and_the_plot(endpoint, capsys):
    run_bench(plan_for(endpoint.url, model="m", requests=4), has_plot=True, console=Console(width=150))
    shown = capsys.readouterr().out
    for word in ("4 requests, 8 at a time", "TTFT", "per output token", "P99", "####"):
        assert word in shown


@pytest.mark.parametrize(
    ("key", "says"), [("", "wants a key: pass --api-key"), ("old", "refused this key: pass another")]
)
def test_a_missing_key_and_a_wrong_one_are_told_apart(endpoint, key, says):
    endpoint.key = "new"
    with pytest.raises(ServerRefused, match=says):
        first_model(connect(endpoint.url, key))
    assert first_model(connect(endpoint.url, "new")) == "m"


def test_a_proxy_is_not_asked_for_this_machine(endpoint, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    assert first_model(connect(endpoint.url)) == "m"
    assert is_ready(endpoint.url)


def test_figures_that_cannot_be_written_are_not_measured(endpoint, tmp_path):
    with pytest.raises(NotWritable, match=r"none/figures.json cannot be written: No such file .* --json"):
        run_bench(plan_for(endpoint.url), json_file=str(tmp_path / "none" / "figures.json"))
    assert not endpoint.bodies


def test_nobody_there():
    with pytest.raises(ServerUnreachable):
        run_bench(plan_for("http://127.0.0.1:9"), console=Console(quiet=True))
    with pytest.raises(NothingMeasured, match=r"ConnectError\. Is a server at"):
        run_bench(plan_for("http://127.0.0.1:9", model="m", requests=1), console=Console(quiet=True))
    with pytest.raises(BadAddress, match="http://HOST:PORT"):
        plan_for("localhost")


def test_figures_state_their_arithmetic():
    samples = [
        Sample(0.0, 0.1, 1.1, [0.25] * 4, 10, 0, 5),
        Sample(0.0, 0.3, 0.7, [0.1] * 4, 10, 5, 5),
        Sample(0.0, error="503 no_replica"),
    ]
    figures = figures_of(plan_for("http://x", model="m"), samples, 2.0)
    assert (figures["requests_per_s"], figures["output_tokens_per_s"]) == (1.0, 5.0)
    assert figures["ttft_ms"] == {"mean": 200.0, "p50": 100.0, "p90": 300.0, "p99": 300.0, "max": 300.0}
    assert figures["tpot_ms"]["mean"] == 175.0  # (1.0 / 4 + 0.4 / 4) / 2
    assert figures["itl_ms"]["p50"] == 100.0
    assert distribution([]) is None


def test_a_histogram_has_a_line_for_each_bin():
    lines = histogram([1.0] * 10 + [13.0])
    assert len(lines) == 12
    assert lines[0].endswith("# 10")
    assert lines[-1].endswith("1")
    assert histogram([5.0, 5.0])[0].endswith(" 2")


def test_more_shared_words_than_words_are_refused():
    with pytest.raises(UserError, match="--shared-words 9 is more than a prompt's 4 words"):
        plan_for("http://127.0.0.1:1", input_words=4, shared_words=9)
