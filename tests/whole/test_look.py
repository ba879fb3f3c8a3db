"""What a person sees of a running house: `quire top`, `quire explain`, `quire bench`."""

import json
import os
import subprocess
import sys

import httpx
import pytest

from quire_api import wire


def quire(*arguments, stdin="", **environment):
    return subprocess.run(
        [sys.executable, "-m", "quire", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def test_top_shows_replicas_with_their_engines_figures(up, client):
    up.wait_routable(2)
    client.chat.completions.create(model="quire-tiny", messages=[{"role": "user", "content": "What is a pod?"}])
    done = quire("top", "--once", "--url", up.url)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert lines[1][:2] == ["quire-tiny", "2/2"]
    replicas = [line for line in lines if line[0].startswith("quire-tiny-")]
    assert len(replicas) == 2
    assert all(line[1] == "serving" and line[6].endswith("%") for line in replicas)


def test_explain_tells_where_the_next_request_goes(up, client):
    up.wait_routable(2)
    question = "Explain what a readiness gate of a pod is good for. " * 8
    messages = [{"role": "user", "content": question}]
    first = client.chat.completions.with_raw_response.create(model="quire-tiny", messages=messages, max_tokens=2)
    done = quire("explain", "-", "-o", "json", "--url", up.url, stdin=question)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    again = client.chat.completions.with_raw_response.create(model="quire-tiny", messages=messages, max_tokens=2)
    assert told["chosen"] == again.headers[wire.HEADER_REPLICA] == first.headers[wire.HEADER_REPLICA]
    assert told["reason"] == again.headers[wire.HEADER_REASON]
    assert told["replicas"][0]["cached_tokens"] == int(again.headers[wire.HEADER_CACHED_TOKENS]) > 0
    table = quire("explain", question, "--url", up.url).stdout
    assert f"goes to   {told['chosen']} ({told['reason']}, policy prefixCost)" in table
    assert "chosen" in table


def test_bench_measures_the_gateway(up):
    up.wait_routable(2)
    done = quire(
        "bench", up.url, "--requests", "6", "--concurrency", "3", "--input-words", "20", "--output-tokens", "8",
        "--ignore-eos", "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert (figures["requests"], figures["failed"], figures["output_tokens"]) == (6, 0, 48)
    assert figures["ttft_ms"]["p50"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("top", "--once", "--url", "http://127.0.0.1:9"), "nothing answers"),
        (("explain", "hi", "--model", "m", "--url", "http://127.0.0.1:9"), "nothing answers"),
        (("bench", "http://127.0.0.1:9"), "nothing answers"),
        (("bench", "nowhere"), "http://HOST:PORT"),
    ],
)
def test_without_a_server_one_line_says_so(arguments, says):
    done = quire(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_explain_names_the_served_models(up):
    done = quire("explain", "hi", "--model", "nope", "--url", up.url)
    assert done.returncode == 2
    assert "quire-tiny" in done.stderr


def test_top_on_an_engine_says_what_it_needs(up):
    up.wait_routable(2)
    replicas = httpx.get(f"{up.url}/internal/v1/replicas", timeout=60.0).json()["replicas"]
    done = quire("top", "--once", "--url", replicas[0]["url"])
    assert done.returncode == 2
    assert "quire:" in done.stderr


@pytest.mark.parametrize("command", ["top", "explain", "bench"])
def test_help_has_examples(command):
    done = quire(command, "--help")
    assert done.returncode == 0
    assert f"quire {command}" in done.stdout.split("Example")[1]
