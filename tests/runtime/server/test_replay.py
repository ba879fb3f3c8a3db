"""A stream cut anywhere and continued by another request is the stream that was never cut."""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from quire_api.replay import COMMENT, HEADER_REPLAY, RESUME_FIELD, Resume, read_comments

TERMS = {"seed": 4711, "created": 1_700_000_000}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Tell me everything."}], "max_tokens": 24}
TEXT = {"model": "tiny", "prompt": "one two three four", "max_tokens": 24, "ignore_eos": True}
HOT = {"temperature": 1.5}
ASKS: dict[str, dict[str, Any]] = {
    "greedy": {**CHAT, "temperature": 0},
    "sampled": {**CHAT, **HOT},
    "filters": {**CHAT, "temperature": 2.0, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
    "own seed": {**TEXT, **HOT, "seed": -5},
    "choices": {**CHAT, **HOT, "n": 3, "stream_options": {"include_usage": True}},
    "chat logprobs": {**CHAT, **HOT, "n": 2, "logprobs": True, "top_logprobs": 3},
    "text logprobs": {**TEXT, **HOT, "logprobs": 2, "return_token_ids": True},
    "usage everywhere": {**CHAT, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "penalties": {
        **TEXT,
        "temperature": 0,
        "presence_penalty": 1.5,
        "frequency_penalty": 1.0,
        "repetition_penalty": 1.3,
    },
    "min_tokens": {**CHAT, **HOT, "min_tokens": 20, "logit_bias": {"0": 5.0}},
    "prompts": {**TEXT, **HOT, "prompt": ["one two", "one two", "three"], "n": 2, "echo": True},
    "echo alone": {**TEXT, "max_tokens": 0, "echo": True, "stream_options": {"include_usage": True}},
}


@dataclass
class Heard:
    """A stream: its events, each with the comment line before it."""

    comments: list[bytes] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False


def stream(http: httpx.Client, ask: dict[str, Any], resume: Resume | None = None) -> Heard:
    path = "/v1/chat/completions" if "messages" in ask else "/v1/completions"
    body = {**ask, "stream": True}
    terms = dict(TERMS)
    if resume is not None:
        terms["resumes"] = True
        choices = [
            {
                "output_token_ids": choice.output_token_ids,
                "has_begun": choice.has_begun,
                "has_ended": choice.has_ended,
            }
            for choice in resume.choices
        ]
        told = {"choices": choices, "sequence": resume.sequence, "cached_tokens": resume.cached_tokens}
        body[RESUME_FIELD] = told
    headers = {HEADER_REPLAY: json.dumps(terms), "x-request-id": "the-same"}
    answer = http.post(path, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers[HEADER_REPLAY] == "1"
    heard = Heard()
    for block in answer.text.split("\n\n")[:-1]:
        *comment, data = block.split("\n")
        if data == "data: [DONE]":
            assert not comment
            heard.is_done = True
            continue
        assert len(comment) == 1, block
        assert comment[0].encode().startswith(COMMENT)
        heard.comments.append(comment[0].encode())
        heard.events.append(json.loads(data.removeprefix("data: ")))
    assert heard.is_done
    return heard


def told(events: list[dict[str, Any]]) -> dict[str, Any]:
    """All that a client knows at the end, however the tokens lay in events."""
    seen: dict[str, Any] = {"facts": {(e["id"], e["created"], e["model"], e["object"]) for e in events}}
    for event in events:
        if event.get("usage") and not event["choices"]:
            seen["usage"] = {k: v for k, v in event["usage"].items() if k != "prompt_tokens_details"}
        for choice in event["choices"]:
            mine = seen.setdefault(choice["index"], {"text": "", "roles": 0, "ids": [], "logprobs": [], "finish": None})
            delta = choice.get("delta", choice)
            mine["text"] += delta.get("content", delta.get("text"))
            mine["roles"] += "role" in delta
            mine["ids"] += choice.get("token_ids", [])
            assert mine["finish"] is None, "nothing comes after the end"
            mine["finish"] = choice["finish_reason"] and (choice["finish_reason"], choice.get("stop_reason"))
            if choice["logprobs"] is not None:
                given = choice["logprobs"]
                mine["logprobs"] += given.get("content") or list(
                    zip(
                        given["tokens"],
                        given["token_logprobs"],
                        given["text_offset"],
                        given["top_logprobs"],
                        strict=True,
                    )
                )
    return seen


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Equal; log-probabilities as far as sums of another order allow."""
    numbers = []
    for seen in (found, wanted):
        flat = json.loads(json.dumps([seen[index]["logprobs"] for index in seen if isinstance(index, int)]))
        numbers.append(flat)
    assert strip(numbers[0]) == strip(numbers[1])
    assert floats(numbers[0]) == pytest.approx(floats(numbers[1]), abs=1e-4)
    for seen in (found, wanted):
        for index in seen:
            if isinstance(index, int):
                seen[index].pop("logprobs", None)
    assert found == wanted


def floats(value: Any) -> list[float]:
    if isinstance(value, float):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [number for part in parts for number in floats(part)]


def strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: strip(part) for key, part in value.items()}
    return [strip(part) for part in value] if isinstance(value, list) else None if isinstance(value, float) else value


@pytest.mark.parametrize("name", ASKS)
def test_a_stream_that_was_cut_goes_on_as_if_it_had_not_been(server, name):
    ask = ASKS[name]
    with server.http() as http:
        whole = stream(http, ask)
        wanted = told(whole.events)
        assert wanted["facts"] == {(whole.events[0]["id"], 1_700_000_000, "tiny", whole.events[0]["object"])}
        at_end = read_comments(b"\n".join(whole.comments))
        count = len(whole.events)
        for cut in sorted({1, count // 3, count // 2, count - 1, count} & set(range(1, count + 1))):
            before = read_comments(b"\n".join(whole.comments[:cut]))
            if before.has_usage:
                continue
            rest = stream(http, ask, before)
            assert_same(told(whole.events[:cut] + rest.events), told(whole.events))
            both = read_comments(b"\n".join(rest.comments), before)
            assert (both.choices, both.has_usage) == (at_end.choices, at_end.has_usage)


def test_a_stop_string_that_lies_across_the_cut_is_found(server):
    ask = {**TEXT, "temperature": 0}
    with server.http() as http:
        text = told(stream(http, ask).events)[0]["text"]
        # Long, so that several tokens are held back; the one before it has been shown.
        stop = text[len(text) // 3 : len(text) // 3 + 12]
        ask |= {"stop": [stop]}
        whole = stream(http, ask)
        wanted = told(whole.events)
        assert wanted[0]["finish"] == ("stop", stop)
        for cut in range(1, len(whole.events), 2):
            rest = stream(http, ask, read_comments(b"\n".join(whole.comments[:cut])))
            assert told(whole.events[:cut] + rest.events) == wanted


def test_a_stream_is_continued_twice(server):
    ask = {**CHAT, **HOT, "n": 2}
    with server.http() as http:
        whole = stream(http, ask)
        first = read_comments(b"\n".join(whole.comments[:5]))
        second = stream(http, ask, first)
        both = read_comments(b"\n".join(second.comments[:7]), first)
        third = stream(http, ask, both)
        assert told(whole.events[:5] + second.events[:7] + third.events) == told(whole.events)


def test_without_the_header_nothing_is_added_and_nothing_resumed(server):
    body = {**CHAT, "stream": True, RESUME_FIELD: {"choices": [{"output_token_ids": [5], "has_begun": True}]}}
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json=body)
    assert ": quire" not in answer.text
    assert HEADER_REPLAY not in answer.headers
    assert RESUME_FIELD in answer.headers["x-quire-warning"]
    assert '"role":"assistant"' in answer.text


@pytest.mark.parametrize(
    "resume",
    [
        None,
        {"choices": 3},
        {"choices": [{"output_token_ids": ["x"]}]},
        {"choices": [{"output_token_ids": [-1], "has_begun": True}]},
        {"choices": [{"output_token_ids": [10**7], "has_begun": True}]},
        {"choices": [{"output_token_ids": [5] * 24, "has_begun": True}]},
        {"choices": [{}, {}]},
    ],
)
def test_a_resume_that_does_not_fit_is_refused(server, resume):
    headers = {HEADER_REPLAY: json.dumps({**TERMS, "resumes": True})}
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json={**CHAT, "stream": True, RESUME_FIELD: resume}, headers=headers)
        assert answer.status_code == 400, answer.text
        assert http.get("/ready").status_code == 200


def test_callers_without_the_internal_key_are_not_heard(start_server):
    server = start_server(
        "--num-gpu-blocks-override", "100", environment={"QUIRE_INTERNAL_KEY": "k", "QUIRE_API_KEY": "a"}
    )
    headers = {HEADER_REPLAY: json.dumps(TERMS), "authorization": "Bearer a"}
    with server.http(**headers) as http:
        answer = http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert (answer.status_code, ": quire" in answer.text) == (200, False)
        answer = http.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers={"x-quire-internal-key": "k"})
        assert ": quire 1 0 " in answer.text
