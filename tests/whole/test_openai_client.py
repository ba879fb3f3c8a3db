"""What an application developer does with the official client, through the gateway."""

import time

import httpx
import openai
import pytest

MODEL = "quire-tiny"
ASK = [{"role": "user", "content": "What is a pod?"}]
SYSTEM = "You are Quire's small demo model. " * 12


def metric(up, name):
    """Sum of a gauge over both engines, by way of the ports in the log-free process table."""
    total = 0.0
    for engine in up.engines():
        command = engine.cmdline()
        port = command[command.index("--port") + 1]
        for line in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30.0).text.splitlines():
            if line.startswith(name):
                total += float(line.rsplit(" ", 1)[1])
    return total


def test_chat_answers_with_usage_and_a_reason_to_stop(client):
    answer = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0)
    assert "pod" in answer.choices[0].message.content.lower()
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_streaming_gives_the_same_text_as_not_streaming(client):
    whole = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=ASK, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len(chunks) > 5, "an answer of many tokens comes in many events"


def test_completions_take_text_and_token_ids(client):
    text = client.completions.create(model=MODEL, prompt="A pod is", max_tokens=8, temperature=0)
    assert text.usage.completion_tokens <= 8
    ids = client.completions.create(model=MODEL, prompt=[5, 6, 7, 8], max_tokens=4, extra_body={"ignore_eos": True})
    assert ids.usage.prompt_tokens == 4
    assert ids.usage.completion_tokens == 4
    assert ids.choices[0].finish_reason == "length"


def test_n_gives_n_choices_and_counts_the_prompt_once(client):
    one = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=6, temperature=1, seed=3)
    three = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=6, temperature=1, seed=3, n=3)
    assert sorted(choice.index for choice in three.choices) == [0, 1, 2]
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.choices[0].message.content == one.choices[0].message.content


def test_the_same_seed_draws_the_same_text_on_either_replica(client):
    texts = {
        client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=12, temperature=1.5, seed=11)
        .choices[0]
        .message.content
        for _ in range(4)
    }
    assert len(texts) == 1


def test_a_stop_string_ends_the_text_before_it(client):
    whole = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0).choices[0].message.content
    stop = whole[len(whole) // 2 :][:6]
    cut = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0, stop=[stop])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_logprobs_name_the_chosen_token_among_the_likeliest(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for position in content:
        assert len(position.top_logprobs) == 3
        assert position.token == position.top_logprobs[0].token
        assert position.logprob == pytest.approx(position.top_logprobs[0].logprob)


def test_hanging_up_frees_what_the_request_held(up, client):
    stream = client.completions.create(
        model=MODEL, prompt=[9] * 64, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 60
    while metric(up, "quire:num_requests_running"):
        assert time.monotonic() < deadline, "the engine still runs a request that nobody listens to"
        time.sleep(0.1)


def test_a_second_question_with_the_same_system_prompt_finds_it_cached(client):
    def ask(question):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        return client.chat.completions.with_raw_response.create(model=MODEL, messages=messages, max_tokens=4)

    first = ask("What is a node?")
    second = ask("What is a service?")
    assert second.headers["x-quire-replica"] == first.headers["x-quire-replica"]
    assert int(second.headers["x-quire-cached-tokens"]) >= 16
    assert second.parse().usage.prompt_tokens_details.cached_tokens >= 16


def test_models_lists_the_served_name(client):
    assert [model.id for model in client.models.list()] == [MODEL]


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"model": "no-such-model"}, 404, MODEL),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": -5}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"n": 0}, 400, "n"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 9000}]}, 400, "tokens"),
    ],
)
def test_a_wrong_request_gets_one_clear_error_object(client, change, status, says):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": ASK, "max_tokens": 4, **change})
    assert caught.value.status_code == status
    body = caught.value.response.json()["error"]
    assert set(body) >= {"message", "type", "param", "code"}
    assert says in body["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"model": "\xff"}',
        b'{"model": "quire-tiny", "messages": NaN}',
        b'{"model": 7, "messages": []}',
    ],
)
def test_a_body_that_is_not_a_request_gets_400(up, body):
    answer = httpx.post(
        f"{up.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}, timeout=60.0
    )
    assert answer.status_code in {400, 404}
    assert answer.json()["error"]["message"]


def test_nan_temperature_is_refused(up):
    body = b'{"model": "quire-tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": NaN}'
    answer = httpx.post(f"{up.url}/v1/chat/completions", content=body, timeout=60.0)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_after_all_that_no_block_is_held(up):
    deadline = time.monotonic() + 60
    while metric(up, "quire:kv_blocks_used"):
        assert time.monotonic() < deadline, "blocks leaked"
        time.sleep(0.1)
