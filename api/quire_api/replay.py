"""How a stream that broke is continued on another engine: what gateway and engine tell each other for it.

A gateway that may have to continue a stream says so in HEADER_REPLAY, and the engine, if it honours that, says the
header back and puts a comment line before each event: which tokens the event brings. The gateway keeps the lines to
itself. To continue, it sends the request again with `resumes` set and RESUME_FIELD as the last field of the body; the
engine goes on as if it had made these tokens itself. docs/replay.md is the contract, tests/api/replay_vectors.json its
test vectors.
"""

from collections.abc import Sequence

import msgspec

REPLAY_VERSION = 1
HEADER_REPLAY = "x-quire-replay"
"""To an engine: `Terms` as JSON, honoured beside the internal key. From it: the version, as a number."""
RESUME_FIELD = "quire_resume"
"""Field of the body that holds `Resume`; read only where the header says `resumes`."""
COMMENT = b": quire "
"""How a comment line begins."""
FAILED = COMMENT + b"failed "
"""How the one begins that tells of a failure."""


class MalformedReplay(ValueError):
    """Comment lines that are not what an engine writes."""


class Terms(msgspec.Struct, kw_only=True):
    """What makes two streams of the same request the same.

    seed: for requests that bring none. created: the time that every event states, seconds since the epoch.
    resumes: the body has RESUME_FIELD.
    """

    seed: int
    created: int
    resumes: bool = False
    version: int = REPLAY_VERSION


class ChoiceSoFar(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the client has of one choice. has_begun: it has an event, if only an empty one. has_ended: it has all."""

    output_token_ids: list[int] = []
    has_begun: bool = False
    has_ended: bool = False


class Resume(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the client has of a stream. choices: one entry a choice, by index; those beyond the last have not begun.

    sequence: of the last event it has. cached_tokens: prompt tokens that the engines before found in their caches.
    has_usage: it has the event with the usage, so that only the end is missing.
    """

    choices: list[ChoiceSoFar] = []
    sequence: int = 0
    cached_tokens: int = 0
    has_usage: bool = False

    @property
    def output_tokens(self) -> int:
        return sum(len(choice.output_token_ids) for choice in self.choices)


def token_comment(
    sequence: int, choice: int, token_ids: Sequence[int], *, ends: bool = False, cached_tokens: int | None = None
) -> bytes:
    """The line before an event of a choice. cached_tokens: in its first one."""
    ids = ",".join(map(str, token_ids)) if token_ids else "-"
    cached = "" if cached_tokens is None else f" cached={cached_tokens}"
    return f": quire {sequence} {choice} {ids}{' end' if ends else ''}{cached}\n".encode()


def usage_comment(sequence: int) -> bytes:
    """The line before the event with the usage."""
    return b": quire %d usage\n" % sequence


def failure_comment(code: str) -> bytes:
    """The line before an event that tells the client of a failure, after which the stream ends."""
    return FAILED + code.encode() + b"\n"


def read_comments(lines: bytes, before: Resume | None = None) -> Resume:
    """What a client has that got the events behind these comment lines, one after the other.

    before: what it had before them.

    Raises:
        MalformedReplay: a line is no comment of an event, or an event is missing or doubled.
    """
    told = Resume() if before is None else before
    choices = [
        ChoiceSoFar(
            output_token_ids=list(choice.output_token_ids), has_begun=choice.has_begun, has_ended=choice.has_ended
        )
        for choice in told.choices
    ]
    seen = Resume(choices=choices, sequence=told.sequence, cached_tokens=told.cached_tokens, has_usage=told.has_usage)
    for line in lines.splitlines():
        if not line.startswith(COMMENT):
            raise MalformedReplay(f"{line[:60]!r} is no comment of an event")
        try:
            _take(seen, line[len(COMMENT) :].decode("ascii").split(" "))
        except ValueError as error:
            raise MalformedReplay(f"{line[:60]!r}: {error}") from None
    return seen


def _take(seen: Resume, words: list[str]) -> None:
    if int(words[0]) != seen.sequence + 1:
        raise ValueError(f"it does not follow event {seen.sequence}")
    seen.sequence += 1
    if words[1:] == ["usage"]:
        seen.has_usage = True
        return
    index, ids, *marks = words[1:]
    place = int(index)
    if not 0 <= place < 1 << 16:
        raise ValueError("no choice has this index")
    while len(seen.choices) <= place:
        seen.choices.append(ChoiceSoFar())
    choice = seen.choices[place]
    if choice.has_ended:
        raise ValueError("the choice has ended before")
    choice.has_begun = True
    if ids != "-":
        choice.output_token_ids += map(int, ids.split(","))
    for mark in marks:
        name, _, value = mark.partition("=")
        if mark == "end":
            choice.has_ended = True
        elif name == "cached":
            seen.cached_tokens = int(value)
        else:
            raise ValueError(f"{mark!r} has no meaning")
