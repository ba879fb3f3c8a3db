"""How long a routing decision takes, and what the index weighs: 100 replicas of 100,000 blocks, 8k-token prompts.

The decision is what the gateway does between a tokenised, hashed prompt and a replica: the candidates, the match in the
index, the costs, the pick. A novel prompt is nobody's, a warm one is wholly held by three replicas, and of a known one
every replica holds another part: with loads as they come, with loads that are all alike, and, which is the most that a
choice can have to do, with loads that outweigh what is held, so that each replica may be the cheapest. Hashing the
prompt's blocks, and entering its blocks into the index for the prompts that follow, are stated apart, and so is a full
collection of Python's garbage collector, which stops the gateway for as long. What a block weighs is said of exact
replicas, and of those that tell nothing, whose blocks are guessed from what was sent there. Times are CPU time of this
thread: a neighbour's work on the machine is no part of them.
"""

import asyncio
import gc
import os
import random
from array import array
from collections.abc import Callable, Sequence
from math import ceil
from time import thread_time_ns
from typing import Any

from quire_api import blocks, wire
from quire_gateway.block_space import BlockSpace
from quire_gateway.choose import Chain, Choice
from quire_gateway.cost import FIRST_TOKEN_WEIGHT
from quire_gateway.fleet import DeploymentState, ReplicaState
from quire_gateway.index import INDEX_KEY_BYTES, PrefixIndex
from quire_gateway.models import Prompt
from quire_gateway.upstream import UpstreamPool

BLOCK_SIZE = 16
REVISION = "decision"
SPACE = BlockSpace(REVISION, BLOCK_SIZE, "")
ROOT = SPACE.root("")
PROMPT_TOKENS = 8192


def measure(replicas: int = 100, blocks_each: int = 100_000, rounds: int = 2000) -> dict[str, Any]:
    return asyncio.run(_measure(replicas, blocks_each, rounds))


async def _measure(replicas: int, blocks_each: int, rounds: int) -> dict[str, Any]:
    rng = random.Random(5)
    shared = [array("I", rng.randbytes(4 * PROMPT_TOKENS)) for _ in range(20)]
    warm = [array("I", rng.randbytes(4 * PROMPT_TOKENS)) for _ in range(20)]
    chains = [Chain(ROOT, tokens, BLOCK_SIZE).all() for tokens in shared]
    warm_chains = [Chain(ROOT, tokens, BLOCK_SIZE).all() for tokens in warm]
    gc.collect()
    before = resident_bytes()
    deployment = DeploymentState(wire.Deployment(name="d", namespace="n", served_names=["m"]))
    number = 0
    for replica in range(replicas):
        name = f"replica-{replica}"
        state = ReplicaState(name, f"http://{name}:1", deployment, UpstreamPool(f"http://{name}:1"))
        state.became_routable(_info(blocks_each))
        deployment.replicas[name] = state
        index = deployment.index
        index.begin(name, blocks_each)
        # Each replica knows every shared prompt to another depth; the rest of its cache is its own.
        held = [key for chain in chains for key in chain[: rng.randrange(len(chain) + 1)]]
        held += [key for number, chain in enumerate(warm_chains) if 0 <= replica - 4 * number < 3 for key in chain]
        index.store(name, held)
        left = blocks_each - len(held)
        while left > 0:
            count = min(left, 10_000)
            index.store(name, keys_from(number, count))
            number, left = number + count, left - count
        index.finish(name)
        state.in_flight = rng.randrange(40)
        state.queued_tokens = rng.randrange(20_000)
    began = thread_time_ns()
    gc.collect()
    collection_ms = (thread_time_ns() - began) / 1e6
    grown = resident_bytes() - before
    entries = replicas * blocks_each
    novel = [array("I", rng.randbytes(4 * PROMPT_TOKENS)) for _ in range(20)]
    return {
        "replicas": replicas,
        "blocks_each": blocks_each,
        "prompt_tokens": PROMPT_TOKENS,
        "decision_novel_us": _time(deployment, novel, rounds, _decide),
        "decision_warm_us": _time(deployment, warm, rounds, _decide),
        "decision_known_us": _time(deployment, shared, rounds, _decide),
        "decision_known_alike_us": _time(deployment, shared, rounds, _decide, _load_alike),
        "decision_known_outweighed_us": _time(deployment, shared, rounds, _decide, _outweighed()),
        "hashing_us": _time(deployment, novel, rounds // 4, _hash),
        "expect_us": _time(deployment, novel, rounds // 4, _expect),
        "index_entries": entries,
        "index_distinct_blocks": len(deployment.index),
        "bytes_per_entry": round(grown / entries, 1),
        "bytes_per_guessed_entry": round(guessed_bytes(replicas // 5, blocks_each), 1),
        "full_collection_ms": round(collection_ms, 1),
    }


def _info(blocks_each: int) -> wire.ModelInfo:
    return wire.ModelInfo(
        served_names=["m"],
        model_revision=REVISION,
        block_size=BLOCK_SIZE,
        block_format=blocks.FORMAT_VERSION,
        max_model_len=131072,
        tokenizer_digest="",
        kv_capacity_tokens=blocks_each * BLOCK_SIZE,
        max_num_seqs=256,
        engine_epoch="1",
    )


Act = Callable[[DeploymentState, Prompt, Chain], None]


def _nothing(deployment: DeploymentState, prompt: Prompt, chain: Chain) -> None:
    pass


def _time(
    deployment: DeploymentState, prompts: Sequence[Any], rounds: int, act: Act, before: Act = _nothing
) -> dict[str, float]:
    """Microseconds of `act` on one prompt after the other, each time after `before`."""
    hashed = []
    for tokens in prompts:
        chain = Chain(ROOT, tokens, BLOCK_SIZE)
        chain.all()
        hashed.append((Prompt(tokens, len(tokens)), chain))
    taken = []
    for turn in range(rounds):
        prompt, chain = hashed[turn % len(hashed)]
        before(deployment, prompt, chain)
        began = thread_time_ns()
        act(deployment, prompt, chain)
        taken.append((thread_time_ns() - began) / 1e3)
    taken.sort()
    return {"p50": round(taken[len(taken) // 2], 1), "p99": round(taken[ceil(0.99 * len(taken)) - 1], 1)}


def _decide(deployment: DeploymentState, prompt: Prompt, chain: Chain) -> None:
    Choice(deployment, prompt, {SPACE: chain}).pick(deployment.candidates(set()))


def _load_alike(deployment: DeploymentState, prompt: Prompt, chain: Chain) -> None:
    for replica in deployment.replicas.values():
        replica.in_flight, replica.queued_tokens = 20, 10_000


def _outweighed() -> Act:
    held: dict[bytes, list[int]] = {}

    def outweigh(deployment: DeploymentState, prompt: Prompt, chain: Chain) -> None:
        replicas = list(deployment.replicas.values())
        if chain[0] not in held:
            # Once, for it brings what is looked up into the processor's cache.
            held[chain[0]] = list(deployment.index.match(chain, [replica.id for replica in replicas]))
        for replica, blocks_held in zip(replicas, held[chain[0]], strict=True):
            replica.in_flight = 20
            saved = blocks_held * BLOCK_SIZE * (replica.in_flight + FIRST_TOKEN_WEIGHT)
            replica.queued_tokens = saved // FIRST_TOKEN_WEIGHT

    return outweigh


def _hash(deployment: DeploymentState, prompt: Prompt, chain: Chain) -> None:
    Chain(ROOT, prompt.tokens, BLOCK_SIZE).all()


def _expect(deployment: DeploymentState, prompt: Prompt, chain: Chain) -> None:
    replica = next(iter(deployment.replicas.values()))
    expectation = Choice(deployment, prompt, {SPACE: chain}).expect(replica)
    if expectation is not None:
        deployment.index.settle(expectation)


def guessed_bytes(replicas: int, blocks_each: int) -> float:
    """Of each block of replicas that tell nothing, once what was sent to them has filled them twice."""
    gc.collect()
    before = resident_bytes()
    index = PrefixIndex()
    names = [f"replica-{replica}" for replica in range(replicas)]
    for name in names:
        index.add_replica(name, blocks_each)
    for first in range(0, 2 * replicas * blocks_each, 500):
        index.insert(names[first // 500 % replicas], keys_from(first, 500))
    gc.collect()
    return (resident_bytes() - before) / sum(map(index.blocks_of, names))


def keys_from(number: int, count: int) -> list[bytes]:
    """Keys of blocks that are nobody else's."""
    return [b"%0*d" % (INDEX_KEY_BYTES, key) for key in range(number, number + count)]


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
