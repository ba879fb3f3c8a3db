"""What one API key may use and has used: pure, with the time given from outside.

    output, in the minute + still reserved + asked <= limit

Output is not known beforehand, so a request reserves what it may write (max_tokens of each choice), and what it writes
moves from the reservation into the minute. The sum on the left grows only when a request is let in, so a request that
says its max_tokens can never take its key over the limit. One that does not say reserves what the key's answers were
of late; where it writes more, the key is let in again only once that has left the minute.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil, isinf

from quire_api.wire import KeyLimits
from quire_gateway.minute import Minute

_FIRST_GUESS = 256
_SMOOTHING = 0.1


class OverLimit(Exception):
    """A request that its key may not make now.

    limit: `request`, `input_token`, `output_token` or `concurrency`. retry_after_s: infinite if it can never be made.
    """

    def __init__(self, limit: str, allowed: int, asked: int, retry_after_s: float) -> None:
        super().__init__(limit)
        self.limit = limit
        self.allowed = allowed
        self.asked = asked
        self.retry_after_s = retry_after_s

    @property
    def is_final(self) -> bool:
        return isinf(self.retry_after_s)


@dataclass(slots=True)
class Totals:
    """What one gateway has let a key use since it started; only ever grows."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Usage:
    """One key's use of one deployment, other gateways' share included as far as they have told it."""

    own: Totals = field(default_factory=Totals)
    in_flight: int = 0
    reserved: int = 0
    """Output tokens that its requests in flight may still write."""
    others_in_flight: int = 0
    others_reserved: int = 0
    requests: Minute = field(default_factory=Minute)
    input_tokens: Minute = field(default_factory=Minute)
    output_tokens: Minute = field(default_factory=Minute)
    others_requests: Minute = field(default_factory=Minute)
    others_input_tokens: Minute = field(default_factory=Minute)
    others_output_tokens: Minute = field(default_factory=Minute)
    typical_output: float = _FIRST_GUESS

    def heard(self, totals: Totals, now: float) -> None:
        """Other gateways have let the key use `totals` more."""
        for minute, others, more in (
            (self.requests, self.others_requests, totals.requests),
            (self.input_tokens, self.others_input_tokens, totals.input_tokens),
            (self.output_tokens, self.others_output_tokens, totals.output_tokens),
        ):
            minute.add(more, now)
            others.add(more, now)

    def own_lately(self, now: float) -> tuple[int, int, int]:
        """Requests, prompt tokens and output tokens that this gateway has let the key use in the last minute."""
        return (
            self.requests.total(now) - self.others_requests.total(now),
            self.input_tokens.total(now) - self.others_input_tokens.total(now),
            self.output_tokens.total(now) - self.others_output_tokens.total(now),
        )


class Permit:
    """One request's share of its key's limits: taken in two steps, `end` settles it."""

    __slots__ = ("_input_second", "_input_tokens", "_is_ended", "_limits", "_reserved", "_usage", "_written")

    def __init__(self, usage: Usage, limits: KeyLimits, now: float) -> None:
        """Take one request and one of those at a time.

        Raises:
            OverLimit: nothing was taken.
        """
        at_a_time = limits.concurrency
        if at_a_time is not None and usage.in_flight + usage.others_in_flight >= at_a_time:
            raise OverLimit("concurrency", at_a_time, usage.in_flight + usage.others_in_flight + 1, 1.0)
        _check("request", usage.requests, 1, limits.requests_per_minute, now)
        usage.requests.add(1, now)
        usage.own.requests += 1
        usage.in_flight += 1
        self._usage = usage
        self._limits = limits
        self._input_tokens = 0
        self._input_second = 0
        self._reserved = 0
        self._written = 0
        self._is_ended = False

    def take_tokens(self, input_tokens: int, most_output: int | None, now: float) -> None:
        """Take the prompt's tokens, and reserve those of the answer: `most_output`, or what is usual.

        Raises:
            OverLimit: nothing of it was taken.
        """
        usage, limits = self._usage, self._limits
        _check("input_token", usage.input_tokens, input_tokens, limits.input_tokens_per_minute, now)
        asked = most_output
        if asked is None:
            asked = min(ceil(usage.typical_output), limits.output_tokens_per_minute or _FIRST_GUESS)
        outstanding = usage.reserved + usage.others_reserved
        _check("output_token", usage.output_tokens, asked, limits.output_tokens_per_minute, now, outstanding)
        self._input_second = usage.input_tokens.add(input_tokens, now)
        self._input_tokens = input_tokens
        usage.own.input_tokens += input_tokens
        self._reserved = asked
        usage.reserved += asked

    def wrote(self, tokens: int, now: float) -> None:
        """So many more tokens of the answer have come."""
        usage = self._usage
        self._written += tokens
        usage.output_tokens.add(tokens, now)
        usage.own.output_tokens += tokens
        moved = min(tokens, self._reserved)
        self._reserved -= moved
        usage.reserved -= moved

    def end(self, now: float, *, was_served: bool) -> None:
        """The request is over. One that no replica has seen gives its prompt's tokens back."""
        if self._is_ended:
            return
        self._is_ended = True
        usage = self._usage
        usage.in_flight -= 1
        usage.reserved -= self._reserved
        self._reserved = 0
        if was_served:
            usage.typical_output += _SMOOTHING * (self._written - usage.typical_output)
        else:
            # Other gateways may have heard of them already, and count them for a minute.
            usage.input_tokens.take_back(self._input_tokens, self._input_second)

    @property
    def written(self) -> int:
        return self._written


@dataclass(frozen=True, slots=True)
class Allowance:
    """One limit as clients are told of it. reset_s: until all of it is there again, if nothing more is used."""

    name: str
    limit: int
    remaining: int
    reset_s: float


def allowances(usage: Usage, limits: KeyLimits, now: float) -> Iterator[Allowance]:
    """Every limit per minute that is set, `requests` first."""
    for name, minute, outstanding, limit in (
        ("requests", usage.requests, 0, limits.requests_per_minute),
        ("input-tokens", usage.input_tokens, 0, limits.input_tokens_per_minute),
        (
            "output-tokens",
            usage.output_tokens,
            usage.reserved + usage.others_reserved,
            limits.output_tokens_per_minute,
        ),
    ):
        if limit is not None:
            remaining = max(limit - minute.total(now) - outstanding, 0)
            yield Allowance(name, limit, remaining, minute.room_in(limit, limit, now))


def _check(name: str, minute: Minute, asked: int, limit: int | None, now: float, outstanding: int = 0) -> None:
    if limit is None:
        return
    if asked > limit:
        raise OverLimit(name, limit, asked, float("inf"))
    if minute.total(now) + outstanding + asked > limit:
        # What is reserved comes free by itself, nobody knows when.
        wait_s = minute.room_in(min(asked + outstanding, limit), limit, now)
        raise OverLimit(name, limit, asked, max(wait_s, 1.0))
