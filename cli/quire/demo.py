"""`quire demo`: the whole path on one machine, from a resource file to streamed tokens."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from quire.chat import Answer, ask, connect, is_ready
from quire.main import USER_ERROR
from quire.up.process import last_line
from quire_api.errors import UserError

START_DEADLINE_S = 300.0
STOP_DEADLINE_S = 60.0


class DemoFailed(UserError):
    """A part of the demo did not come up."""


def run_demo(file: str, *, port: int, stay: bool | None) -> None:
    """Run `quire up` on `file`, ask the model's demo questions through the gateway, stop it again.

    Raises:
        DemoFailed: the file is missing, or the gateway was not ready within five minutes.
    """
    resource = Path(file)
    script = Path("models/quire-tiny/demo.json")
    for needed in (resource, script):
        if not needed.exists():
            raise DemoFailed(f"{needed} is not here. Run the demo from the root of a clone of Quire.")
    console = Console()
    port = port or _free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="quire-demo-") as state:
        log = Path(state) / "up.log"
        console.print(f"[bold]quire up {resource}[/]  (gateway at {url})")
        with log.open("wb") as output:
            up = subprocess.Popen(
                [sys.executable, "-m", "quire", "up", str(resource), "--port", str(port), "--state-dir", state],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            _wait_ready(console, up, url, log)
            _converse(console, url, json.loads(script.read_text()))
            if stay or (stay is None and _wants_to_stay(console)):
                console.print(f"Serving at {url}/v1. Talk to it: [bold]quire chat --url {url}[/]. Ctrl-C ends it.")
                up.wait()
        except KeyboardInterrupt:
            console.print()
        finally:
            _stop(up)
    console.print("Stopped; nothing is left running.")


def _converse(console: Console, url: str, script: dict[str, Any]) -> None:
    client = connect(url)
    model = script["model"]
    answers: list[Answer] = []
    for question in script["questions"][:2]:
        console.print(f"\n[bold cyan]you>[/] {question}")
        messages = [{"role": "system", "content": script["system"]}, {"role": "user", "content": question}]
        answer = ask(client, model, messages, console, temperature=0)
        if not answer.text.strip() or answer.completion_tokens < 1:
            raise DemoFailed("the model answered nothing; `quire up` in another terminal shows the engines' logs.")
        answers.append(answer)
        console.print(
            f"[dim]{answer.completion_tokens} tokens, first after {answer.ttft_s * 1e3:.0f} ms, then"
            f" {answer.tokens_per_second:.0f} tokens/s · replica {answer.replica} ({answer.reason})\n"
            f"prompt: {answer.prompt_tokens} tokens, {answer.cached_tokens} of them from the prefix cache[/]"
        )
    if answers[-1].cached_tokens == 0:
        raise DemoFailed("the second question should have found the system prompt in a prefix cache, but did not.")
    console.print(
        f"\nBoth questions share a system prompt: {answers[-1].cached_tokens} tokens were not computed again."
    )


def _wait_ready(console: Console, up: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    start = time.monotonic()
    with console.status("starting two engines and the gateway"):
        while not (is_ready(url) and _routable_replicas(url) >= 2):
            if up.poll() == USER_ERROR:
                raise DemoFailed(last_line(log).removeprefix("quire: "))
            if up.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                raise DemoFailed(f"the gateway did not become ready. The end of its log:\n{tail}")
            time.sleep(0.1)
    console.print(f"two replicas ready after {time.monotonic() - start:.1f} s")


def _routable_replicas(url: str) -> int:
    try:
        report = httpx.get(f"{url}/internal/v1/replicas", timeout=2.0, trust_env=False)
        return sum(replica["is_routable"] for replica in report.json()["replicas"]) if report.is_success else 0
    except (httpx.HTTPError, ValueError, KeyError):
        return 0


def _wants_to_stay(console: Console) -> bool:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    return console.input("\nKeep it up? [y/N] ").strip().lower() in {"y", "yes"}


def _stop(up: subprocess.Popen[bytes]) -> None:
    if up.poll() is not None:
        return
    up.send_signal(signal.SIGINT)
    try:
        up.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(up.pid, signal.SIGKILL)
        up.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
