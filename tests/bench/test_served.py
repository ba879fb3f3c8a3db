"""The program that measures HTTP servers: what it reads of answers, and a whole run against a real server."""

import json
import py_compile
import socket
import sys
import threading
from pathlib import Path

import pytest
import report_http
import served
from http_clients import Answered, Asked, Load, ask

REQUIRED = ["--engine", "quire", "--version", "1", "--model", "m", "--run", "r"]
REQUIRED += ["--kernel-cache", "filled", "--plan", "w1", "--out", "x"]
STOPPED = (
    b'data: {"choices":[{"text":"a","finish_reason":"stop"}],"usage":{"prompt_tokens":2,"completion_tokens":1}}\n\n'
    b"data: [DONE]\n\n"
)
TINY = Path(__file__).parents[2] / "models" / "quire-tiny"


def test_distributions_are_of_what_counts_and_totals_of_all():
    early = Answered(due_s=0.5, events_s=[0.9, 1.0], end_s=1.1, prompt_tokens=5, output_tokens=4)
    late = Answered(due_s=2.0, events_s=[0.010, 0.030, 9.0], end_s=9.1, prompt_tokens=7, output_tokens=3)
    lost = Answered(due_s=2.0, end_s=1.0, problem="HTTP 500")
    found = served.reading(Load([early, late, lost], wall_s=10.0, busiest=0.25), counts_from_s=1.0, gaps_until_s=5.0)
    assert (found["requests"], found["ok"], found["bad"], found["errors"]) == (3, 2, 1, ["HTTP 500"])
    assert (found["output_tokens"], found["output_tok_s"], found["tokens_per_event"]) == (7, 0.7, 1.4)
    assert found["ttft_ms"] == {"p50": 10.0, "p90": 10.0, "p99": 10.0, "max": 10.0}
    # The gap that ends 11 s after the beginning is one of a load that is no longer offered.
    assert found["itl_ms"]["max"] == 20.0
    assert found["tpot_ms"]["p50"] == 4495.0


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nfull", "HTTP 503: full"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "the stream ended without [DONE]"),
        (b"SSH-2.0\r\n\r\n", "an answer that is not understood"),
        (b"", "the server hung up"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(STOPPED), STOPPED),
            "2 and 1 tokens, stop; asked for (2, 3)",
        ),
    ],
)
def test_an_answer_that_is_not_whole_is_told_and_not_counted(answer: bytes, problem: str):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        load = ask(listener.getsockname()[1], "m", [Asked([1, 2], 3)], processes=1)
        thread.join()
    assert [told.problem[: len(problem)] for told in load.answers] == [problem]
    assert served.reading(load)["bad"] == 1


def test_arrivals_of_a_repetition_are_the_same_again_and_within_their_time():
    options = served.arguments(["--seconds", "20", "--divide", "8", *REQUIRED, "--", "x", "--port", "1"])
    first, again, other = (served.poisson(3.0, rep, options) for rep in (1, 1, 2))
    assert first == again != other
    assert all(0 < asked.due_s < 20 for asked in first)
    assert 30 < len(first) < 100
    assert [len(asked.prompt) for asked in first] == [
        len(asked.prompt) for asked in served.w1(0, options)[: len(first)]
    ]


@pytest.mark.parametrize(
    ("given", "words"), [(["--plan", "w2"], "--plan names w2"), (["--", "quire", "serve"], "--port PORT")]
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(given: list[str], words: str, capsys):
    with pytest.raises(SystemExit):
        served.arguments([*REQUIRED, *given, *([] if "--" in given else ["--", "x", "--port", "1"])])
    assert words in capsys.readouterr().err


def test_bytecode_is_there_when_each_package_has_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("served_a", "served_b"):
        (tmp_path / f"{name}.py").write_text("")
    py_compile.compile(str(tmp_path / "served_a.py"))
    assert served.has_bytecode(["served_a"])
    assert not served.has_bytecode(["served_a", "served_b"])
    assert not served.has_bytecode(["served_a", "served_that_is_not_installed"])


def test_a_real_server_is_measured_and_its_lines_make_the_page(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    out = tmp_path / "http.jsonl"
    command = [sys.executable, "-m", "quire", "serve", str(TINY), "--served-model-name", "m", "--port", port]
    small = ["--first=4", "--divide=32", "--vocabulary=1500", "--processes=2", "--seconds=4", "--ramp=1"]
    monkeypatch.chdir(tmp_path)
    given = [*REQUIRED, "--out", str(out), "--plan", "w1:2,poisson:3", *small, "--", *command]
    assert served.main(given) == 0
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    assert [line["step"] for line in lines] == ["startup", "w1", "w1", "poisson"]
    assert [line.get("workload") for line in lines] == [None, "w1", "w1", "poisson-3"]
    assert lines[0]["first_token_s"] >= lines[0]["health_s"] > 0
    for line in lines[1:]:
        assert line["bad"] == 0, line["errors"]
        assert line["ok"] == line["requests"] > 0
    assert sum(line["server_cpu_s"]["engine"] for line in lines[1:]) > 0
    assert lines[1]["output_tokens"] == sum(asked.tokens for asked in served.w1(1, served.arguments(given)))
    page = report_http.served(lines)
    assert page.count("| quire 1 |") == 4
    assert f"kernel cache filled, {'' if lines[0]['bytecode'] else 'no '}bytecode |" in page
