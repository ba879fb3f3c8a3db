"""Requests of the HTTP API: what is accepted, what becomes of it, what is refused."""

from typing import Any

import pytest

from quire_api.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    InvalidRequest,
    TokenizeRequest,
    default_sampling,
    sampling_params,
)
from quire_api.sampling import InvalidSampling, SamplingParams

HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.parse({"messages": HI, **fields})


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.parse({"prompt": "hi", **fields})


def test_what_a_request_leaves_out_is_the_default():
    assert sampling_params(chat(), {}) == SamplingParams(max_tokens=None)
    assert sampling_params(completion(), {}) == SamplingParams(max_tokens=16)


def test_every_sampling_field_arrives():
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "repetition_penalty": 1.2,
        "seed": -3,
        "stop_token_ids": [7],
        "include_stop_str_in_output": True,
        "min_tokens": 2,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "n": 3,
        "max_tokens": 20,
    }
    for request in (chat(**fields), completion(**fields)):
        params = sampling_params(request, {})
        assert {name: getattr(params, name) for name in fields} == fields


def test_the_request_goes_before_the_model_and_the_model_before_us():
    defaults = default_sampling({"temperature": 0.6, "top_k": 20, "max_new_tokens": 100, "do_sample": True})
    assert defaults == {"temperature": 0.6, "top_k": 20, "max_tokens": 100}
    params = sampling_params(chat(temperature=0, max_tokens=5), defaults)
    assert (params.temperature, params.top_k, params.max_tokens) == (0, 20, 5)
    assert sampling_params(chat(), defaults).max_tokens == 100
    assert sampling_params(completion(), defaults).max_tokens == 100


def test_null_means_left_out():
    params = sampling_params(chat(temperature=None, stop=None, max_tokens=None, n=None, logit_bias=None), {"top_k": 5})
    assert params == SamplingParams(max_tokens=None, top_k=5)


def test_max_completion_tokens_goes_before_max_tokens():
    assert sampling_params(chat(max_tokens=3, max_completion_tokens=9), {}).max_tokens == 9


@pytest.mark.parametrize(("given", "stop"), [("a", ["a"]), (["a", "b"], ["a", "b"]), ([], [])])
def test_stop_is_one_or_many(given, stop):
    assert sampling_params(chat(stop=given), {}).stop == stop


def test_logprobs_in_both_shapes():
    assert sampling_params(chat(logprobs=True), {}).logprobs == 0
    assert sampling_params(chat(logprobs=True, top_logprobs=4), {}).logprobs == 4
    assert sampling_params(completion(logprobs=0), {}).logprobs == 0
    assert sampling_params(chat(logprobs=False), {}).logprobs is None


def test_echo_with_logprobs_asks_for_the_prompts():
    assert sampling_params(completion(echo=True, logprobs=2), {}).prompt_logprobs == 2
    assert sampling_params(completion(echo=True, logprobs=2, prompt_logprobs=5), {}).prompt_logprobs == 5
    only = completion(echo=True, max_tokens=0, logprobs=1)
    assert only.is_echo_only
    assert sampling_params(only, {}).max_tokens == 1


def test_logit_bias_is_keyed_by_token():
    assert sampling_params(chat(logit_bias={"12": -5}), {}).logit_bias == {12: -5}


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_prompts_in_four_shapes(prompt, prompts):
    assert CompletionRequest.parse({"prompt": prompt}).prompts == prompts


def test_unknown_fields_are_named_and_known_ones_are_not():
    assert chat(zebra=1, apple=None, user="u", priority=1, parallel_tool_calls=True).unknown_fields() == [
        "apple",
        "zebra",
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tools": [{"type": "function"}], "tool_choice": "none"},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"modalities": ["text"]},
        {"functions": []},
        {"best_of": 1},
        {"structured_outputs": None},
        {"stream": None},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}, {"role": "assistant"}]},
    ],
)
def test_fields_that_change_nothing_pass(fields):
    assert chat(**fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function"}], "tool_choice": "required"}, "tools"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs"),
        ({"guided_json": {}}, "guided_json"),
        ({"audio": {}}, "audio"),
        ({"bad_words": ["x"]}, "bad_words"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"temperature": "1"}, "temperature"),
        ({"n": True}, "n"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ],
)
def test_what_is_refused_names_its_field(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.param == param


def test_more_choices_than_one_request_may_ask_for():
    for body, param in (({"prompt": ["a"] * 2049}, "prompt"), ({"prompt": ["a"] * 100, "n": 100}, "n")):
        with pytest.raises(InvalidRequest) as caught:
            CompletionRequest.parse(body)
        assert caught.value.param == param


def test_values_out_of_range_name_their_field():
    for fields, param in (({"temperature": float("nan")}, "temperature"), ({"max_tokens": -1}, "max_tokens")):
        with pytest.raises(InvalidSampling) as caught:
            sampling_params(chat(**fields), {})
        assert caught.value.param == param
    with pytest.raises(InvalidSampling):
        default_sampling({"top_p": 7})


def test_tokenize_wants_one_of_two():
    for body in ({}, {"prompt": "a", "messages": HI}):
        with pytest.raises(InvalidRequest, match="either"):
            TokenizeRequest.parse(body)
    for body in ([], "a", None):
        with pytest.raises(InvalidRequest, match="JSON object"):
            TokenizeRequest.parse(body)


def test_values_out_of_range_are_named_as_the_request_named_them():
    for fields, says in (
        ({"max_completion_tokens": 0}, "max_completion_tokens must be at least 1; got 0."),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs must be a whole number from 0 to 20; got 99."),
        ({"seed": 2**63}, f"seed must be at most {2**63 - 1}; got {2**63}."),
    ):
        with pytest.raises(InvalidSampling) as caught:
            sampling_params(chat(**fields), {})
        assert str(caught.value) == says
        assert says.startswith(caught.value.param)
