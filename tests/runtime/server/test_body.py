"""Bodies of unusual shapes, before anybody looks at their fields."""

import pytest

from quire_api.body_limits import MAX_CONTAINERS, MAX_VALUES
from quire_api.openai import ChatCompletionRequest, CompletionRequest, InvalidRequest
from quire_runtime.server.body import parse_json


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": [' + b"1," * (MAX_VALUES + 1) + b"1]}",
        b'{"prompt": [' + b"NaN," * (MAX_VALUES + 1) + b"1]}",
        b'{"prompt": [' + b'"",' * (MAX_VALUES + 1) + b"1]}",
        b'{"prompt": [' + b'"",' * (3 * MAX_VALUES) + b"1]}",
        b'{"messages": [' + b"{}," * MAX_CONTAINERS + b"1]}",
        b'{"prompt": [' + b"[],\n" * MAX_CONTAINERS + b"1]}",
        b'{"prompt": "\\\\", "x": [' + b'"\\",",' * MAX_VALUES + b"1]}",
    ],
    ids=["numbers", "NaN", "texts", "many texts", "objects", "lists", "escapes"],
)
def test_more_values_than_the_server_can_look_at_are_refused_unread(body):
    with pytest.raises(InvalidRequest, match="Send several requests") as caught:
        parse_json(body)
    assert caught.value.code == "too_many_values"


@pytest.mark.parametrize("text", ["a, ", "{", "[", '\\",', '",', "\\"])
def test_what_stands_in_a_text_is_no_value(text):
    import orjson

    long = text * (2 * MAX_VALUES)
    assert parse_json(orjson.dumps({"prompt": long, "model": "m"})) == {"prompt": long, "model": "m"}


def test_as_many_token_ids_as_allowed_pass():
    ids = list(range(MAX_VALUES))
    body = parse_json(b'{"prompt": [' + b",".join(b"%d" % token for token in ids) + b"]}")
    assert CompletionRequest.parse(body).prompt == ids


def test_of_many_mistakes_the_first_is_told():
    many = [{} for _ in range(1000)]
    with pytest.raises(InvalidRequest) as caught:
        ChatCompletionRequest.parse({"messages": [{"role": "user", "content": "a"}, *many]})
    assert str(caught.value) == "messages[1].role is required."
