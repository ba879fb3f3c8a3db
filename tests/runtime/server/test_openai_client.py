"""The official client against a real server and engine."""

import concurrent.futures
import math

import openai
import pytest

from quire_text.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "What is a block?"}]
GREEDY = {"model": "tiny", "temperature": 0}


@pytest.fixture(scope="module")
def tokenizer(model_directory) -> Tokenizer:
    return Tokenizer.from_directory(model_directory)


def test_a_chat_answer_has_all_its_parts(client):
    answer = client.chat.completions.create(**GREEDY, messages=CHAT, max_tokens=12, extra_body={"ignore_eos": True})
    assert answer.object == "chat.completion"
    assert answer.model == "tiny"
    [choice] = answer.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "length")
    assert choice.message.content
    usage = answer.usage
    assert (usage.completion_tokens, usage.total_tokens) == (12, usage.prompt_tokens + 12)


def test_a_stream_says_what_the_whole_answer_says(client):
    arguments = {**GREEDY, "messages": CHAT, "max_tokens": 40, "extra_body": {"ignore_eos": True}}
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    *growing, last = chunks
    assert growing[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in growing[1:])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in growing) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in growing if chunk.choices[0].finish_reason] == ["length"]
    assert last.choices == []
    assert last.usage.completion_tokens == 40
    assert all(chunk.usage is None for chunk in growing)
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_in_every_chunk_where_asked(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = client.chat.completions.create(
        **GREEDY, messages=CHAT, max_tokens=8, stream=True, stream_options=options, extra_body={"ignore_eos": True}
    )
    counts = [chunk.usage.completion_tokens for chunk in stream]
    assert counts == sorted(counts)
    assert counts[-1] == 8


def test_completions_of_texts_and_ids_are_the_same(client, tokenizer):
    text = "The scheduler gives"
    ids = tokenizer.encode(text)

    def ask(prompt):
        return client.completions.create(**GREEDY, prompt=prompt, max_tokens=6)

    expected = ask(text).choices[0].text
    assert ask([text, "1 2 3"]).choices[0].text == expected
    assert ask(ids).choices[0].text == expected
    both = ask([tokenizer.encode("1 2 3"), ids])
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[1].text == expected
    assert both.usage.prompt_tokens == len(ids) + len(tokenizer.encode("1 2 3"))


def test_the_first_of_several_choices_is_what_one_alone_would_be(client):
    sampling = {"model": "tiny", "messages": CHAT, "temperature": 1.0, "seed": 7, "max_tokens": 16}
    alone = client.chat.completions.create(**sampling)
    several = client.chat.completions.create(**sampling, n=4)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[0].message.content == alone.choices[0].message.content
    assert len({choice.message.content for choice in several.choices}) > 1


def test_streamed_choices_interleave_and_add_up(client):
    sampling = {"model": "tiny", "prompt": ["one", "two"], "n": 2, "seed": 3, "max_tokens": 10}
    whole = client.completions.create(**sampling)
    texts = dict.fromkeys(range(4), "")
    ends = {}
    for chunk in client.completions.create(**sampling, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert ends.keys() == texts.keys()


def test_a_seed_repeats_an_answer_and_another_does_not(client):
    def ask(seed):
        answer = client.completions.create(model="tiny", prompt="block", seed=seed, max_tokens=24, temperature=1.0)
        return answer.choices[0].text

    assert ask(11) == ask(11)
    assert ask(11) != ask(12)


def test_a_stop_string_ends_text_and_count(client):
    body = {"ignore_eos": True}
    full = client.completions.create(**GREEDY, prompt="A block holds", max_tokens=40, extra_body=body).choices[0].text
    stop = full[10:13]
    cut = full[: full.index(stop)]
    answer = client.completions.create(**GREEDY, prompt="A block holds", max_tokens=40, stop=[stop], extra_body=body)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (cut, "stop")
    assert answer.choices[0].stop_reason == stop
    assert answer.usage.completion_tokens < 40
    with_stop = client.completions.create(
        **GREEDY,
        prompt="A block holds",
        max_tokens=40,
        stop=stop,
        stream=True,
        extra_body={**body, "include_stop_str_in_output": True},
    )
    assert "".join(chunk.choices[0].text for chunk in with_stop) == cut + stop


def test_stop_token_ids_end_an_answer(client, tokenizer):
    body = {"ignore_eos": True, "return_token_ids": True}
    ids = client.completions.create(**GREEDY, prompt="block", max_tokens=20, extra_body=body).choices[0].token_ids
    stop = ids[5]
    answer = client.completions.create(
        **GREEDY, prompt="block", max_tokens=20, extra_body={**body, "stop_token_ids": [stop]}
    )
    [choice] = answer.choices
    assert choice.token_ids == ids[: ids.index(stop) + 1]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert choice.text == tokenizer.decode(ids[: ids.index(stop)])


def test_logit_bias_forces_a_token(client, tokenizer):
    token = tokenizer.encode("e", add_special_tokens=False)[0]
    answer = client.completions.create(**GREEDY, prompt="block", max_tokens=4, logit_bias={str(token): 100})
    assert answer.choices[0].text == "eeee"


def test_chat_logprobs(client):
    answer = client.chat.completions.create(
        **GREEDY, messages=CHAT, max_tokens=5, logprobs=True, top_logprobs=3, extra_body={"ignore_eos": True}
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    for position in content:
        assert len(position.top_logprobs) == 3
        best = position.top_logprobs[0]
        assert (best.token, best.logprob, best.bytes) == (position.token, position.logprob, position.bytes)
        assert sum(math.exp(entry.logprob) for entry in position.top_logprobs) <= 1.001
    assert (
        bytes(byte for position in content for byte in position.bytes)
        .decode(errors="replace")
        .startswith(answer.choices[0].message.content.rstrip("\N{REPLACEMENT CHARACTER}"))
    )


def test_streamed_logprobs_cover_every_token(client):
    arguments = {**GREEDY, "messages": CHAT, "max_tokens": 12, "logprobs": True, "extra_body": {"ignore_eos": True}}
    whole = client.chat.completions.create(**arguments).choices[0].logprobs.content
    streamed = [
        position
        for chunk in client.chat.completions.create(**arguments, stream=True)
        if chunk.choices[0].logprobs
        for position in chunk.choices[0].logprobs.content
    ]
    assert [entry.bytes for entry in streamed] == [entry.bytes for entry in whole]
    assert all(entry.top_logprobs == [] for entry in streamed)


def test_echo_with_logprobs_scores_the_prompt(client, tokenizer):
    text = "A block holds sixteen tokens."
    ids = tokenizer.encode(text)
    answer = client.completions.create(**GREEDY, prompt=text, max_tokens=0, echo=True, logprobs=2)
    [choice] = answer.choices
    assert choice.text == text
    assert answer.usage.completion_tokens == 0
    scores = choice.logprobs
    assert scores.tokens == [tokenizer.token_text(token) for token in ids]
    assert scores.token_logprobs[0] is None
    assert all(score <= 0 for score in scores.token_logprobs[1:])
    assert scores.text_offset == [sum(map(len, scores.tokens[:i])) for i in range(len(ids))]
    grown = client.completions.create(**GREEDY, prompt=text, max_tokens=3, echo=True, logprobs=2).choices[0]
    assert grown.text.startswith(text)
    assert grown.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(scores.token_logprobs[1:], abs=1e-3)
    assert len(grown.logprobs.tokens) == len(ids) + 3


def test_prompt_logprobs(client, tokenizer):
    ids = tokenizer.encode("sequences with a common prefix")
    answer = client.completions.create(**GREEDY, prompt=ids, max_tokens=1, extra_body={"prompt_logprobs": 1})
    first, *others = answer.choices[0].prompt_logprobs
    assert first is None
    assert len(others) == len(ids) - 1
    for token, entries in zip(ids[1:], others, strict=True):
        assert entries[str(token)]["rank"] >= 1
        assert entries[str(token)]["decoded_token"] == tokenizer.token_text(token)


def test_a_repeated_prompt_is_found_in_the_cache(client):
    long = [{"role": "user", "content": "A common prefix shares its blocks. " * 6}]
    for expected in (False, True):
        answer = client.chat.completions.create(**GREEDY, messages=long, max_tokens=2)
        assert (answer.usage.prompt_tokens_details.cached_tokens > 0) == expected


def test_continue_final_message(client):
    started = [*CHAT, {"role": "assistant", "content": "A block holds"}]
    arguments = {**GREEDY, "messages": started, "max_tokens": 3}
    goes_on = client.chat.completions.create(**arguments, extra_body={"continue_final_message": True})
    anew = client.chat.completions.create(**arguments)
    assert goes_on.usage.prompt_tokens < anew.usage.prompt_tokens


def test_truncated_prompts_keep_their_end(client, tokenizer):
    ids = tokenizer.encode("one two three four five six")
    body = {"truncate_prompt_tokens": 4, "return_token_ids": True}
    answer = client.completions.create(**GREEDY, prompt=ids, max_tokens=1, extra_body=body)
    assert answer.choices[0].prompt_token_ids == ids[-4:]


def test_emoji_and_cjk_arrive_whole(client, tokenizer):
    wanted = tokenizer.encode("👩‍👩‍👧你好", add_special_tokens=False)
    steps = [{str(token): 100} for token in wanted]
    prompt = tokenizer.encode("block")
    text = ""
    for bias in steps[:4]:
        answer = client.completions.create(**GREEDY, prompt=prompt, max_tokens=4, logit_bias=bias, stream=True)
        text = "".join(chunk.choices[0].text for chunk in answer)
        token = int(next(iter(bias)))
        assert text == tokenizer.decode([token] * 4)


def test_many_at_once_get_what_each_gets_alone(client):
    def ask(index: int) -> str:
        answer = client.completions.create(**GREEDY, prompt=f"{index} " * (index + 1), max_tokens=8)
        return answer.choices[0].text

    alone = [ask(index) for index in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == alone


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "small"]
    assert client.models.retrieve("small").id == "small"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert client.completions.create(model="small", prompt="a", max_tokens=1).model == "small"
