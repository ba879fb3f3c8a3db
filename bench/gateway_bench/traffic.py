"""The workloads of the routing comparison: what arrives when, the same for every policy.

ladder    150 groups x 5 prompts of 6,000 shared + 1,200 own tokens, 1,000 out: the capacity benchmark of llm-d's
          KV-cache manager (`benchmarking/`, its 73 % and 37 % cases); the KV cache is sized so that all prompts
          together fill that share of the fleet's. The rest is filled by answers, which nobody asks for again.
chats     conversations under one 600-token system prompt: each turn carries all before it, answers included.
hot       one system prompt of 4,000 tokens for everybody, 300 own, 200 out.
unshared  nothing in common: 200 to 4,000 tokens in, 50 to 500 out.
"""

import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import overload

from gateway_bench.engine import BLOCK_SIZE, Job
from gateway_bench.fleet import ROOT
from quire_api import blocks

REPLICAS = 8
H200_BLOCKS = 52_000
"""KV cache of M-8B on one H200 at 85 % of its memory, in blocks of 16 tokens."""
AFFINITY_TOKENS = 25
"""100 characters at four characters a token."""

_GROUPS, _PER_GROUP, _SHARED, _OWN, _LADDER_OUTPUT = 150, 5, 6000, 1200, 1000
_LADDER_TOKENS = _GROUPS * (_SHARED + _PER_GROUP * _OWN)
_SETTLE_S = 60.0
"""About as long as a request takes near saturation."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a script: `gap_s` after the one before it has ended, or its arrival for the first."""

    job: Job
    gap_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Script:
    """Requests that follow one another, the first at `at_s`."""

    at_s: float
    turns: Sequence[Turn]


@dataclass(frozen=True, slots=True)
class Workload:
    """loads: first requests a second, from light to beyond saturation. scripts(load, seconds, seed): what arrives.

    common_tokens: of all prompts together, what comes again. fresh_tokens: what one script brings beside them, prompts
    and answers, in the mean.
    """

    name: str
    title: str
    blocks: int
    loads: Sequence[float]
    scripts: Callable[[float, float, int], list[Script]]
    common_tokens: int = 0
    fresh_tokens: float = 0.0

    def warm_s(self, load: float) -> float:
        """Seconds until what has come fills the fleet's caches, were nothing kept twice, and has been answered."""
        fresh = REPLICAS * self.blocks * BLOCK_SIZE - self.common_tokens
        return fresh / (load * self.fresh_tokens) + _SETTLE_S


class Joined(Sequence[int]):
    """Token ids in parts, which other prompts may share."""

    def __init__(self, parts: Sequence["array[int]"]) -> None:
        self._parts = parts
        self._length = sum(map(len, parts))

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> "array[int]": ...
    def __getitem__(self, at: int | slice) -> "int | array[int]":
        # Mostly the first few are asked for.
        if isinstance(at, slice) and at.start is None and at.stop is not None and 0 < at.stop <= len(self._parts[0]):
            return self._parts[0][at]
        return reduce(add, self._parts)[at]


class Texts:
    """Random token ids, and their block keys; what begins alike is hashed once."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._made_up = 0

    def tokens(self, count: int) -> "array[int]":
        # 32 random bits each; they need not be a vocabulary's.
        return array("I", self.rng.randbytes(4 * count))

    def job(self, parts: Sequence["array[int]"], known: Sequence[bytes], output_tokens: int, affinity: bytes) -> Job:
        """A prompt of `parts`, whose first blocks have the keys `known`."""
        tokens = Joined(parts)
        keys = extend(known, tokens)
        full = (len(tokens) + output_tokens - 1) // BLOCK_SIZE
        return Job(tokens, keys, output_tokens, self.made_up(full - len(keys)), affinity)

    def made_up(self, count: int) -> list[bytes]:
        """Keys of blocks that nobody will ask for."""
        first, self._made_up = self._made_up, self._made_up + count
        # The digits first: the gateway keeps the beginning of a key.
        return [b"%-16d" % number for number in range(first, first + count)]


def extend(known: Sequence[bytes], tokens: "Joined | array[int]") -> list[bytes]:
    """`known`, keys of the first blocks of `tokens`, and those of the others."""
    parent = known[-1] if known else ROOT
    return [*known, *blocks.chain(parent, tokens[len(known) * BLOCK_SIZE :], BLOCK_SIZE)]


def head(tokens: "array[int]") -> bytes:
    """What KubeAI's hash takes of a message."""
    return tokens[:AFFINITY_TOKENS].tobytes()


def poisson(rng: random.Random, load: float, seconds: float) -> Iterator[float]:
    at = rng.expovariate(load)
    while at < seconds:
        yield at
        at += rng.expovariate(load)


def ladder(load: float, seconds: float, seed: int) -> list[Script]:
    texts = Texts(seed)
    prompts = []
    for _ in range(_GROUPS):
        shared = texts.tokens(_SHARED)
        known = extend([], shared)
        for _ in range(_PER_GROUP):
            prompts.append(texts.job([shared, texts.tokens(_OWN)], known, _LADDER_OUTPUT, head(shared)))
    scripts = []
    for at in poisson(texts.rng, load, seconds):
        job = texts.rng.choice(prompts)
        answer_keys = texts.made_up(len(job.answer_keys))
        scripts.append(Script(at, [Turn(replace(job, answer_keys=answer_keys))]))
    return scripts


def chats(load: float, seconds: float, seed: int) -> list[Script]:
    texts = Texts(seed)
    rng = texts.rng
    system = texts.tokens(600)
    root = extend([], system)
    scripts = []
    for at in poisson(rng, load, seconds):
        spoken, known, turns, affinity = [system], root, [], b""
        for number in range(rng.randint(3, 10)):
            question = texts.tokens(rng.randint(40, 400))
            affinity = affinity or head(question)
            answer = texts.tokens(rng.randint(50, 500))
            spoken = [*spoken, question]
            job = texts.job(spoken, known, len(answer), affinity)
            spoken = [*spoken, answer]
            whole = Joined(spoken)
            known = extend(job.keys, whole)[: (len(whole) - 1) // BLOCK_SIZE]
            job.answer_keys = known[len(job.keys) :]
            turns.append(Turn(job, 0.0 if number == 0 else rng.expovariate(1 / 6.0)))
        scripts.append(Script(at, turns))
    return scripts


def hot(load: float, seconds: float, seed: int) -> list[Script]:
    texts = Texts(seed)
    system = texts.tokens(4000)
    known = extend([], system)
    scripts = []
    for at in poisson(texts.rng, load, seconds):
        own = texts.tokens(300)
        scripts.append(Script(at, [Turn(texts.job([system, own], known, 200, head(own)))]))
    return scripts


def unshared(load: float, seconds: float, seed: int) -> list[Script]:
    texts = Texts(seed)
    scripts = []
    for at in poisson(texts.rng, load, seconds):
        own = texts.tokens(texts.rng.randint(200, 4000))
        scripts.append(Script(at, [Turn(texts.job([own], [], texts.rng.randint(50, 500), head(own)))]))
    return scripts


def _ladder_blocks(pressure: float) -> int:
    return round(_LADDER_TOKENS / pressure / REPLICAS / BLOCK_SIZE)


WORKLOADS = (
    Workload(
        "ladder-37",
        "shared-prefix ladder, 37 % of the cache",
        _ladder_blocks(0.37),
        (4, 8, 12, 16, 24),
        ladder,
        _LADDER_TOKENS,
        _LADDER_OUTPUT,
    ),
    Workload(
        "ladder-73",
        "shared-prefix ladder, 73 % of the cache",
        _ladder_blocks(0.73),
        (4, 8, 12, 16, 24),
        ladder,
        _LADDER_TOKENS,
        _LADDER_OUTPUT,
    ),
    # 6.5 turns of 220 and 275 tokens in the mean.
    Workload("chats", "multi-turn chats", H200_BLOCKS, (2, 10, 16, 22, 28), chats, 600, 6.5 * (220 + 275)),
    Workload("hot", "one hot system prompt", H200_BLOCKS, (20, 60, 100, 130, 180), hot, 4000, 300 + 200),
    Workload("unshared", "nothing shared", H200_BLOCKS, (20, 50, 80, 100, 120), unshared, 0, 2100 + 275),
)
