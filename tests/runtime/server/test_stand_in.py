"""What a healthy engine never does: a stand-in for its client fails in every way that the protocol allows."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import httpx
import pytest

from quire_api.sampling import SamplingParams
from quire_runtime.engine.errors import EngineDied, RequestRefused
from quire_runtime.engine.messages import EngineReady, EngineStats, TokenLogprobs
from quire_runtime.engine.request import EngineRequest
from quire_runtime.engine.stream import ChoiceDelta, Stream
from quire_runtime.scheduler.request import FinishReason
from quire_runtime.server.app import create_app
from quire_runtime.server.config import ServerConfig
from quire_runtime.server.generation import Generation
from quire_text.tokenizer import Tokenizer

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
Steps = list[list[ChoiceDelta] | Exception]


@dataclass
class StandIn:
    """Plays back `steps` to every request."""

    steps: Steps
    info: EngineReady | None = field(default_factory=lambda: EngineReady("rev", 16, 100, 512, 8, "epoch", {}))
    stats: EngineStats = field(default_factory=EngineStats)
    is_alive: bool = True
    heartbeat_age_s: float = 0.0
    closed: int = 0

    def open(self, request: EngineRequest) -> Stream:
        stream = Stream(request.params.n - len(request.ended), self._count)
        asyncio.get_running_loop().call_soon(self._play, stream, iter(self.steps))
        return stream

    def _play(self, stream: Stream, steps: Iterator[list[ChoiceDelta] | Exception]) -> None:
        match next(steps, None):
            case None:
                return
            case Exception() as failure:
                stream.fail(failure)
            case deltas:
                if sum(stream.add(delta) for delta in deltas):
                    stream.tell()
        asyncio.get_running_loop().call_soon(self._play, stream, steps)

    def _count(self, _stream: Stream) -> None:
        self.closed += 1


Talk = Callable[[StandIn], httpx.AsyncClient]


@pytest.fixture(scope="module")
def tokenizer(model_directory) -> Tokenizer:
    return Tokenizer.from_directory(model_directory)


@pytest.fixture
def talk(tokenizer) -> Talk:
    def to(engine: StandIn) -> httpx.AsyncClient:
        app = create_app(engine, tokenizer, ServerConfig.of(served_model_name=["m"]))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url="http://test")
        client.app = app  # type: ignore[attr-defined]
        return client

    return to


def spelled(tokenizer: Tokenizer, text: str, choice: int = 0, finish: FinishReason = FinishReason.NONE) -> Steps:
    *early, last = tokenizer.encode(text, add_special_tokens=False)
    return [*([ChoiceDelta(choice, [token])] for token in early), [ChoiceDelta(choice, [last], finish)]]


async def test_a_poisoned_request_fails_alone(talk, tokenizer):
    engine = StandIn([*spelled(tokenizer, "ok"), [ChoiceDelta(0, [], FinishReason.ERROR, error="not a number")]])
    async with talk(engine) as http:
        whole = await http.post("/v1/chat/completions", json=CHAT)
        assert (whole.status_code, whole.json()["error"]["message"]) == (500, "not a number")
        streamed = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        *_, error, done = [line[6:] for line in streamed.text.splitlines() if line]
        assert (streamed.status_code, done) == (200, "[DONE]")
        assert json.loads(error)["error"]["code"] == "request_failed"
        service = http.app.state.service
        assert (service.in_flight, service.metrics.outcomes["error"], engine.closed) == (0, 2, 2)
        assert (await http.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("refusal", "status", "waits"),
    [
        (RequestRefused("queue_full", "full"), 429, True),
        (RequestRefused("draining", "bye"), 503, True),
        (RequestRefused("kv_cache_too_small", "never"), 400, False),
        (RequestRefused("context_length_exceeded", "long"), 400, False),
        (EngineDied("gone"), 503, True),
        (RuntimeError("secret detail"), 500, False),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_refusals_come_before_the_first_byte(talk, refusal, status, waits, stream):
    engine = StandIn([refusal])
    async with talk(engine) as http:
        answer = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        assert answer.status_code == status
        assert ("retry-after" in answer.headers) == waits
        assert "secret" not in answer.text
        assert answer.json()["error"]["code"]
        assert answer.headers["x-request-id"]
        assert http.app.state.service.in_flight == 0


async def test_health_tells_death_and_silence(talk):
    engine = StandIn([])
    async with talk(engine) as http:
        engine.heartbeat_age_s = 1000.0
        assert (await http.get("/health")).json()["error"]["code"] == "engine_hung"
        assert (await http.get("/ready")).status_code == 503
        engine.is_alive = False
        for path in ("/health", "/ready", "/v1/models"):
            assert (await http.get(path)).status_code == (200 if path == "/v1/models" else 503)


async def test_before_the_model_is_loaded(tokenizer):
    app = create_app(None, None, ServerConfig.of(served_model_name=["m"]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
        assert (await http.get("/health")).json() == {"status": "loading"}
        for path in ("/ready", "/internal/v1/model", "/internal/v1/tokenizer"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
        assert (await http.get("/metrics")).status_code == 200
        app.state.service.attach(StandIn([]), tokenizer)
        assert (await http.get("/ready")).status_code == 200


async def test_several_steps_at_once_are_one_event(talk, tokenizer):
    steps = spelled(tokenizer, "abcdef", finish=FinishReason.LENGTH)
    together = [[delta for step in steps for delta in step]]
    async with talk(StandIn(together)) as http:
        answer = await http.post("/v1/completions", json={"model": "m", "prompt": "x", "stream": True})
    [event, done] = [line[6:] for line in answer.text.splitlines() if line]
    assert done == "[DONE]"
    assert json.loads(event)["choices"][0]["text"].startswith("abcde")


@pytest.mark.parametrize(
    ("fields", "text", "finish"),
    [
        ({"stop": "cd"}, "ab", "stop"),
        ({"stop": ["ef", "cd"], "include_stop_str_in_output": True}, "abcd", "stop"),
        ({"stop": "gz"}, "abcdefg", "length"),
        ({"stop": "cd", "min_tokens": 6}, "abcdefg", "length"),
        ({"stop": "a", "min_tokens": 1}, "abcdefg", "length"),
    ],
)
async def test_stop_strings_over_tokens(talk, tokenizer, fields, text, finish):
    engine = StandIn(spelled(tokenizer, "abcdefg", finish=FinishReason.LENGTH))
    body = {"model": "m", "prompt": "x", "max_tokens": 20, **fields}
    async with talk(engine) as http:
        [choice] = (await http.post("/v1/completions", json=body)).json()["choices"]
        assert (choice["text"], choice["finish_reason"]) == (text, finish)
        streamed = await http.post("/v1/completions", json={**body, "stream": True})
        events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == text
        assert engine.closed == 2


async def test_the_token_that_ends_an_answer_shows_only_where_asked(talk, tokenizer):
    stop = tokenizer.encode("z", add_special_tokens=False)[0]
    engine = StandIn([*spelled(tokenizer, "ab"), [ChoiceDelta(0, [stop], FinishReason.STOP)]])
    body = {"model": "m", "prompt": "x", "stop_token_ids": [stop], "return_token_ids": True}
    async with talk(engine) as http:
        [choice] = (await http.post("/v1/completions", json=body)).json()["choices"]
        assert (choice["text"], choice["stop_reason"], choice["token_ids"][-1]) == ("ab", stop, stop)
        [choice] = (await http.post("/v1/completions", json={**body, "include_stop_str_in_output": True})).json()[
            "choices"
        ]
        assert choice["text"] == "abz"


async def test_how_tokens_lie_in_events_changes_nothing_that_a_client_knows(talk, tokenizer):
    """A server that falls behind takes the deltas of several steps at once."""
    texts = ["one é", "two ü"]
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    steps = [
        [
            ChoiceDelta(
                choice,
                [token],
                FinishReason.LENGTH if at == len(tokens) - 1 else FinishReason.NONE,
                [TokenLogprobs([token], [-1.0], 1)],
            )
            for choice, tokens in enumerate(ids)
            for token in tokens[at : at + 1]
        ]
        for at in range(max(map(len, ids)))
    ]
    body = {"model": "m", "prompt": "p", "n": 2, "logprobs": 0, "max_tokens": 9, "stream": True}
    known = []
    for played in (steps, [[delta for step in steps for delta in step]]):
        async with talk(StandIn(played)) as http:
            answer = await http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        seen = [{"text": "", "offsets": [], "ends": []} for _ in ids]
        for line in answer.text.splitlines():
            if not line.startswith("data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                mine = seen[choice["index"]]
                assert not mine["ends"], "nothing comes after the end"
                mine["text"] += choice["text"]
                mine["offsets"] += choice["logprobs"]["text_offset"]
                mine["ends"] += [choice["finish_reason"]] if choice["finish_reason"] else []
        assert [choice["text"] for choice in seen] == texts
        assert all(choice["ends"] == ["length"] and choice["offsets"][0] == 0 for choice in seen)
        known.append(seen)
    assert known[0] == known[1]


async def test_several_prompts_end_together_when_one_fails(talk, tokenizer):
    engine = StandIn([[ChoiceDelta(0, [5])], EngineDied("gone")])
    async with talk(engine) as http:
        answer = await http.post("/v1/completions", json={"model": "m", "prompt": ["a", "b", "c"]})
        assert answer.status_code == 503
        assert http.app.state.service.in_flight == 0
    assert engine.closed == 3


async def test_a_generation_closed_twice_leaves_once(talk, tokenizer):
    async with talk(StandIn(spelled(tokenizer, "ab", finish=FinishReason.LENGTH))) as http:
        service = http.app.state.service
        generation = Generation(service, [[5]], SamplingParams(), request_id="r", arrived=0.0)
        assert service.in_flight == 1
        await generation.finish()
        generation.close()
        generation.close()
        assert service.in_flight == 0
