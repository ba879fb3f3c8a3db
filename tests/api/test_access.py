"""API keys as people write them into Secrets."""

import pytest

from quire_api import wire
from quire_api.access import read_api_keys
from quire_api.v1alpha1 import AccessSpec, KeyLimits

ACCESS = AccessSpec(limits=KeyLimits(requests_per_minute=5, concurrency=2))


def read(**values):
    return read_api_keys(values, ACCESS)


def test_a_plain_key_has_the_deployments_limits():
    limits = wire.KeyLimits(requests_per_minute=5, concurrency=2)
    assert read(alice="sk-1\n") == ([wire.ApiKey(name="alice", key="sk-1", limits=limits)], [])


@pytest.mark.parametrize(
    "text",
    [
        '{"key": "x", "limits": {"requestsPerMinute": 9}, "priority": -3, "weight": 2, '
        '"expires": "2027-01-31T00:00:00Z", "cacheGroup": "team"}',
        "key: x\nlimits: {requestsPerMinute: 9}\npriority: -3\nweight: 2\nexpires: 2027-01-31\ncacheGroup: team\n",
        "{key: x, limits: {requestsPerMinute: 9}, priority: -3, weight: 2.0, "
        "expires: 2027-01-31T01:00:00+01:00, cacheGroup: team}",
    ],
)
def test_a_mapping_says_what_is_special(text):
    (key,), problems = read(bob=text)
    assert problems == []
    assert key == wire.ApiKey(
        name="bob",
        key="x",
        limits=wire.KeyLimits(requests_per_minute=9, concurrency=2),
        priority=-3,
        weight=2.0,
        expires_at=1801353600.0,
        cache_group="team",
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty; write the key"),
        ("{", "is no plain key, and not YAML or JSON either"),
        ("a\nb", "is neither a plain key nor a mapping with `key`"),
        ("{priority: 1}", "key: Field required"),
        ("{key: s3cret, limit: 1}", "limit: Extra inputs are not permitted"),
        ("{key: s3cret, limits: {concurrency: 0}}", "limits.concurrency: Input should be greater than or equal to 1"),
        ("{key: s3cret, expires: soon}", 'expires: "soon" is no time; write for example 2027-01-31T00:00:00Z'),
        ("{key: s3cret, weight: 0}", "weight: Input should be greater than 0"),
        ("{key: s3cret, weight: nan}", "weight: Input should be a finite number"),
        ("{key: s3cret, priority: 99999999999}", "priority: Input should be less than or equal to 1048576"),
    ],
)
def test_what_cannot_be_used_is_named_without_the_key_and_harms_no_other(text, problem):
    keys, problems = read(bad=text, good="sk-good")
    assert [key.name for key in keys] == ["good"]
    assert problems == [f"bad: {problem}"]
    assert "s3cret" not in problems[0]


def test_one_key_under_two_names_is_the_first_ones():
    keys, problems = read(a="same", b="same")
    assert [key.name for key in keys] == ["a"]
    assert problems == ["b: is the same key as a; give each name a key of its own"]
