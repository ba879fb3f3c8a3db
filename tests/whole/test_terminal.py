"""What a person types at the terminal."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from quire_api.version import __version__


def quire(*arguments, stdin="", **environment):
    return subprocess.run(
        [sys.executable, "-m", "quire", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, **environment},
    )


def test_chat_answers_one_question(up):
    done = quire("chat", "What is a pod?", "--url", up.url, "--temperature", "0")
    assert done.returncode == 0, done.stderr
    assert "pod" in done.stdout.lower()


def test_chat_holds_a_dialogue_until_exit(up):
    done = quire("chat", "--url", up.url, stdin="What is a pod?\n/clear\nWhat is 2 + 3?\n/exit\n")
    assert done.returncode == 0, done.stderr
    assert "tokens/s" in done.stdout
    assert "5" in done.stdout


def test_chat_with_an_unknown_model_names_the_served_ones(up):
    done = quire("chat", "hi", "--url", up.url, "--model", "nope")
    assert done.returncode == 2
    assert "quire-tiny" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_chat_without_a_server_says_how_to_start_one():
    done = quire("chat", "hi", "--url", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "quire up" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_status_shows_the_resource_ready(up):
    up.wait_routable(2)
    done = quire("status", "--state-dir", str(up.resource.parent / "state"))
    assert done.returncode == 0, done.stderr
    assert "quire-tiny" in done.stdout
    assert "True" in done.stdout


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "LLMDeployment"),
        ("a: [", "YAML"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}", "LLMDeployment"),
        ("apiVersion: quire.dev/v1alpha1\nkind: LLMDeployment\nmetadata: {name: a}\nspec: {}", "model"),
        (
            "apiVersion: quire.dev/v1alpha1\nkind: LLMDeployment\nmetadata: {name: a}\n"
            "spec: {model: {source: 'file:///m'}, autoscaling: {minReplicas: 3, maxReplicas: 1}}",
            "minReplicas",
        ),
        (
            "apiVersion: quire.dev/v1alpha1\nkind: LLMDeployment\nmetadata: {name: a}\n"
            "spec: {model: {source: 'file:///m'}, replicsa: 2}",
            "replicas",
        ),
    ],
)
def test_up_refuses_a_wrong_file_in_a_sentence(tmp_path: Path, content, says):
    file = tmp_path / "resource.yaml"
    file.write_text(content)
    done = quire("up", str(file), "--port", "0", "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_up_on_a_missing_file_and_a_busy_port(up, tmp_path: Path):
    missing = quire("up", str(tmp_path / "none.yaml"))
    assert missing.returncode == 2
    assert "none.yaml" in missing.stderr
    port = up.url.rsplit(":", 1)[1]
    busy = quire("up", str(up.resource), "--port", port, "--state-dir", str(tmp_path / "state"))
    assert busy.returncode == 2
    assert port in busy.stderr
    assert len(busy.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("command", [[], ["up"], ["serve"], ["chat"], ["demo"], ["status"]])
def test_every_command_explains_itself(command):
    done = quire(*command, "--help")
    assert done.returncode == 0
    assert "quire" in done.stdout.lower()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "/no/such/model"], "/no/such/model"),
        (["serve", "models/quire-tiny", "--max-num-seqs", "0"], "max"),
        (["serve", "models/quire-tiny", "--no-such-flag"], "no-such-flag"),
        (["serve", "models/quire-tiny", "--device", "cuda"], "torch can use no GPU here"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_a_sentence(arguments, says):
    done = quire(*arguments, "--port", "0") if arguments[0] == "serve" else quire(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_told_by_the_flag_and_by_the_command():
    assert quire("--version").stdout == quire("version").stdout == f"quire {__version__}\n"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("quire ser", {"serve"}),
        ("quire serve --max-num-s", {"--max-num-seqs"}),
        ("quire serve m --port 1 --no-enf", {"--no-enforce-eager"}),
        ("quire bench --con", {"--concurrency"}),
    ],
)
def test_the_shell_completes_commands_and_flags(line, offered):
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_QUIRE_COMPLETE": "complete_bash"}
    program = [sys.executable, "-c", "import sys; sys.argv[0] = 'quire'; from quire.main import main; main()"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=180, env={**os.environ, **words})
    assert set(done.stdout.split()) == offered
