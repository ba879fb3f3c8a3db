"""SamplingParams as code written for vLLM makes them."""

import msgspec
import pytest

from quire_api.sampling import InvalidSampling, SamplingParams


@pytest.mark.parametrize(
    ("given", "stop", "ids"),
    [
        ({}, [], []),
        ({"stop": None, "stop_token_ids": None}, [], []),
        ({"stop": "end"}, ["end"], []),
        ({"stop": ("a", "b"), "stop_token_ids": (1, 2)}, ["a", "b"], [1, 2]),
    ],
)
def test_lists_may_be_missing_or_of_another_kind(given, stop, ids):
    params = SamplingParams(**given)
    assert (params.stop, params.stop_token_ids) == (stop, ids)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": float("nan")},
        {"temperature": -1},
        {"top_p": 0},
        {"max_tokens": 0},
        {"min_tokens": 5, "max_tokens": 4},
        {"n": 0},
        {"stop": [""]},
        {"logit_bias": {1: 101.0}},
    ],
)
def test_what_is_out_of_range_is_named(given):
    with pytest.raises(InvalidSampling, match=next(iter(given))):
        SamplingParams(**given)
