"""The comment lines of streams that can be continued, held to vectors that any other implementation can be held to."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from quire_api import replay
from quire_api.replay import MalformedReplay, Resume, Terms, read_comments

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("replay_vectors.json").read_text())


def test_the_vectors_are_of_this_version() -> None:
    assert VECTORS["version"] == replay.REPLAY_VERSION
    assert VECTORS["header"] == msgspec.json.encode(Terms(seed=4711, created=1760000000)).decode()


@pytest.mark.parametrize("vector", VECTORS["streams"], ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any]) -> None:
    before = msgspec.convert(vector["before"], Resume)
    after = read_comments("\n".join(vector["lines"]).encode(), before)
    assert msgspec.to_builtins(after) == vector["after"]
    assert msgspec.convert(vector["after"], Resume) == after


@pytest.mark.parametrize("lines", VECTORS["malformed"])
def test_malformed(lines: list[str]) -> None:
    with pytest.raises(MalformedReplay):
        read_comments("\n".join(lines).encode())


def test_written_lines_are_the_vectors() -> None:
    written = [
        replay.token_comment(1, 0, [345], cached_tokens=64),
        replay.token_comment(2, 1, [17, 8], cached_tokens=64),
        replay.token_comment(3, 0, []),
        replay.token_comment(4, 1, [2], ends=True),
        replay.token_comment(5, 0, [9, 10], ends=True),
        replay.usage_comment(6),
    ]
    assert [line.decode().removesuffix("\n") for line in written] == VECTORS["streams"][0]["lines"]
    assert replay.failure_comment("engine_dead") == b": quire failed engine_dead\n"
