"""What the Secret of a source must hold."""

import pytest

from quire_operator.credentials import missing_entries

KEY_PAIR = ["accessKeyId", "secretAccessKey"]


@pytest.mark.parametrize(
    ("source", "entries", "missing"),
    [
        ("hf://a/b", ["token"], []),
        ("hf://a/b", ["HF_TOKEN"], ["token"]),
        ("oci://r/a:1", [".dockerconfigjson"], []),
        ("oci://r/a:1", ["config.json"], [".dockerconfigjson"]),
        ("s3://b/p", KEY_PAIR, []),
        ("s3://b/p", [*KEY_PAIR, "sessionToken", "region", "endpoint"], []),
        ("s3://b/p", ["endpoint"], []),
        ("s3://b/p", ["accessKeyId", "endpoint"], ["secretAccessKey"]),
        ("s3://b/p", ["sessionToken"], KEY_PAIR),
        ("s3://b/p", ["AWS_ACCESS_KEY_ID"], KEY_PAIR),
        ("pvc://claim/p", [], []),
    ],
)
def test_entries_that_a_source_cannot_do_without(source, entries, missing):
    assert missing_entries(source, entries) == missing
