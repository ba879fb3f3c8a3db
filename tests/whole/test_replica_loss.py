"""Engines are killed under streams: every answer is the one that would have come anyway, and the replica comes back."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest

MODEL = "quire-tiny"
COPIES = 2
CHAT = {"messages": [{"role": "user", "content": "Tell me what a pod is, and then go on and on."}]}
TEXT = {"prompt": "A pod is a group of one or more containers. A node"}
LONG = {"max_tokens": 72, "extra_body": {"ignore_eos": True}}
HOT = {"temperature": 1.4, "seed": 20}
USAGE = {"stream_options": {"include_usage": True}}
ASKS: dict[str, dict[str, Any]] = {
    "greedy chat": {**CHAT, **LONG, "temperature": 0, **USAGE},
    "sampled chat": {**CHAT, **LONG, **HOT},
    "two choices with logprobs": {**CHAT, **LONG, **HOT, "n": 2, "logprobs": True, "top_logprobs": 2, **USAGE},
    "greedy text with logprobs": {**TEXT, **LONG, "temperature": 0, "logprobs": 3},
    "broken characters": {**TEXT, **LONG, "temperature": 4.0, "seed": 7},
    "echo, two prompts": {**LONG, **HOT, "prompt": ["A pod", "A node is"], "echo": True, **USAGE},
    "penalties": {**TEXT, **LONG, "temperature": 0, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    "shortest length": {
        **CHAT,
        **HOT,
        "max_tokens": 80,
        "extra_body": {"min_tokens": 70, "repetition_penalty": 1.1, "top_k": 40},
    },
}


@dataclass
class Told:
    """What one stream told its client."""

    facts: set[tuple[str, int, str]] = field(default_factory=set)
    texts: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    usage: tuple[int, int] | None = None

    def content(self) -> tuple[Any, ...]:
        """What a second asking must give again."""
        return self.texts, self.finish, self.usage, [[name for name, _ in each] for each in self.logprobs.values()]

    def numbers(self) -> list[float]:
        return [number for each in self.logprobs.values() for _, numbers in each for number in numbers]


def read(client: Any, ask: dict[str, Any], progress: threading.Semaphore | None = None) -> Told:
    """One stream to its end; `progress` is released at each event."""
    ask = dict(ask)
    kind = client.chat.completions if "messages" in ask else client.completions
    told = Told()
    for chunk in kind.create(model=MODEL, stream=True, **ask):
        told.facts.add((chunk.id, chunk.created, chunk.model))
        if chunk.usage is not None:
            assert told.usage is None, "one usage"
            told.usage = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        for choice in chunk.choices:
            index = choice.index
            assert index not in told.finish, "nothing after the end"
            text = choice.delta.content if "messages" in ask else choice.text
            told.texts[index] = told.texts.get(index, "") + (text or "")
            if choice.logprobs is not None:
                told.logprobs.setdefault(index, []).extend(positions(choice.logprobs))
            if choice.finish_reason:
                told.finish[index] = choice.finish_reason
        if progress is not None:
            progress.release()
    return told


def positions(logprobs: Any) -> list[tuple[Any, list[float]]]:
    """What must be equal of each position, and its numbers."""
    if getattr(logprobs, "content", None) is not None:
        return [
            (
                (each.token, tuple(top.token for top in each.top_logprobs)),
                [each.logprob, *(t.logprob for t in each.top_logprobs)],
            )
            for each in logprobs.content
        ]
    return [
        ((token, offset, tuple(top)), [number, *top.values()])
        for token, offset, number, top in zip(
            logprobs.tokens, logprobs.text_offset, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
        )
    ]


@pytest.fixture(scope="module")
def undisturbed(up) -> dict[str, Told]:
    up.wait_routable(2)
    return {name: read(up.client(), ask) for name, ask in ASKS.items()}


def moves(up) -> float:
    text = httpx.get(f"{up.url}/metrics", timeout=30.0).text
    lines = [line for line in text.splitlines() if line.startswith("quire_gateway_stream_moves_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def under_streams(up, breaks: Callable[[], None]) -> list[tuple[str, Told]]:
    """What all streams told during which `breaks` was called, once each had begun."""
    told: list[tuple[str, Told]] = []
    problems: list[str] = []
    begun = [threading.Semaphore(0) for _ in range(COPIES * len(ASKS))]

    def one(name: str, client: Any, progress: threading.Semaphore) -> None:
        try:
            told.append((name, read(client, ASKS[name], progress)))
        except Exception as error:
            problems.append(f"{name}: {error!r}")
        finally:
            progress.release(1000)

    threads = [
        # A client takes its time to make: streams that are to run side by side must not wait for it.
        threading.Thread(target=one, args=(name, up.client(), begun[place * COPIES + copy]))
        for place, name in enumerate(ASKS)
        for copy in range(COPIES)
    ]
    for thread in threads:
        thread.start()
    for progress in begun:
        for _ in range(4):
            assert progress.acquire(timeout=240)
    breaks()
    for thread in threads:
        thread.join(600)
    assert not any(thread.is_alive() for thread in threads)
    assert problems == []
    return told


def assert_undisturbed(told: list[tuple[str, Told]], undisturbed: dict[str, Told]) -> None:
    assert len(told) == COPIES * len(ASKS)
    for name, each in told:
        assert len(each.facts) == 1, f"{name}: id, time and model stay"
        assert each.content() == undisturbed[name].content(), name
        # Sums of another order differ in their last digits.
        assert each.numbers() == pytest.approx(undisturbed[name].numbers(), abs=1e-4), name


def engine_process(server: psutil.Process) -> psutil.Process:
    """The process that owns the model, beside the one that speaks HTTP."""
    return next(child for child in server.children() if "quire_runtime.engine.process" in child.cmdline())


def test_kill_9_of_a_replica_loses_doubles_and_changes_no_token(up, undisturbed):
    before = moves(up)
    victim = up.engines()[0]
    told = under_streams(up, lambda: victim.send_signal(signal.SIGKILL))
    assert_undisturbed(told, undisturbed)
    assert moves(up) > before
    up.wait_routable(2)
    assert victim.pid not in [engine.pid for engine in up.engines()]
    answer = up.client().completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=4)
    assert answer.usage.completion_tokens >= 1


def test_kill_9_of_the_engine_under_its_server_does_not_either(up, undisturbed):
    up.wait_routable(2)
    before = moves(up)
    victim = engine_process(up.engines()[-1])
    told = under_streams(up, lambda: os.kill(victim.pid, signal.SIGKILL))
    assert_undisturbed(told, undisturbed)
    assert moves(up) > before
    up.wait_routable(2)


def test_a_frozen_replica_is_left_and_comes_back(up, undisturbed):
    up.wait_routable(2)
    before = moves(up)
    victim = up.engines()[0]
    frozen = [victim, engine_process(victim)]

    def freeze() -> None:
        for process in frozen:
            process.suspend()

    try:
        assert_undisturbed(under_streams(up, freeze), undisturbed)
    finally:
        for process in frozen:
            process.resume()
    assert moves(up) > before
    up.wait_routable(2)


def test_a_loop_that_stands_still_in_a_live_process_is_left_and_comes_back(up, undisturbed):
    up.wait_routable(2)
    before = moves(up)
    victim = engine_process(up.engines()[0])
    try:
        told = under_streams(up, lambda: victim.send_signal(signal.SIGUSR2))
    finally:
        victim.send_signal(signal.SIGUSR2)
    assert_undisturbed(told, undisturbed)
    assert moves(up) > before
    up.wait_routable(2)
    assert victim.is_running()


def test_when_both_replicas_die_the_streams_go_on_once_one_is_back(up, undisturbed):
    up.wait_routable(2)
    victims = up.engines()

    def kill_all() -> None:
        for victim in victims:
            victim.send_signal(signal.SIGKILL)

    assert_undisturbed(under_streams(up, kill_all), undisturbed)
    up.wait_routable(2)


def test_the_replica_that_went_on_dies_too(up, undisturbed):
    up.wait_routable(2)
    first, second = up.engines()

    def one_after_the_other() -> None:
        before = moves(up)
        first.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 240
        while moves(up) < before + 3:
            assert time.monotonic() < deadline, "no streams move"
            time.sleep(0.02)
        second.send_signal(signal.SIGKILL)

    assert_undisturbed(under_streams(up, one_after_the_other), undisturbed)
    up.wait_routable(2)
