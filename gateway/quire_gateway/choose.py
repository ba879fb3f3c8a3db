"""From a prompt and the replicas to a pick: hashing, matching, cost, and the speculative insert."""

from collections.abc import Iterable, Sequence
from itertools import islice
from operator import itemgetter
from typing import overload

from quire_api import blocks
from quire_gateway.block_space import BlockSpace
from quire_gateway.cost import CachedTokens, Known, Pick
from quire_gateway.fleet import DeploymentState, ReplicaState, Roster, as_candidates
from quire_gateway.index import INDEX_KEY_BYTES, Expectation
from quire_gateway.misses import Namespace
from quire_gateway.models import Prompt
from quire_gateway.prefix_match import Match
from quire_gateway.sessions import keep_session

_cut = itemgetter(slice(INDEX_KEY_BYTES))


class Chain:
    """A prompt's block keys under one root as the index keeps them, computed as far as they have been looked at."""

    def __init__(self, root: bytes, tokens: Sequence[int], block_size: int) -> None:
        self._known: list[bytes] = []
        self._rest = map(_cut, blocks.chain(root, tokens, block_size))
        self._length = len(tokens) // block_size

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | list[bytes]:
        """One key, or those of a slice that names its end."""
        if type(at) is int:
            try:
                return self._known[at]
            except IndexError:
                self._know(at + 1)
        elif isinstance(at, slice):
            self._know(at.stop)
        return self._known[at]

    def _know(self, count: int) -> None:
        if count > len(self._known):
            self._known.extend(islice(self._rest, count - len(self._known)))

    def at(self, depth: int) -> bytes | None:
        """The key of one block; None beyond the last."""
        return self[depth] if depth < self._length else None

    def all(self) -> list[bytes]:
        """Every key of the chain."""
        self._known.extend(self._rest)
        return self._known


Chains = dict[BlockSpace, Chain]
"""A prompt's chains."""


class Matched:
    """`cost.CachedTokens` of a match of blocks of `block_size` tokens."""

    def __init__(self, match: Match, block_size: int) -> None:
        self._match = match
        self._block_size = block_size

    def __len__(self) -> int:
        return len(self._match)

    def __getitem__(self, number: int) -> int:
        return self._match[number] * self._block_size

    def at_most(self) -> list[int]:
        return self._match.at_most(self._block_size)

    def settle(self, numbers: Iterable[int]) -> bool:
        return self._match.settle(numbers)

    def is_any_below(self, tokens: int) -> bool:
        return self._match.is_any_below(tokens // self._block_size)


class Choice:
    """Chooses for one request, and again without what failed; blocks are hashed at most once."""

    def __init__(
        self, deployment: DeploymentState, prompt: Prompt, chains: Chains | None = None, session: bytes = b""
    ) -> None:
        """chains: what has been hashed of the prompt before, and is added to. session: a digest, see `sessions`."""
        self._session = session
        self._deployment = deployment
        self._prompt = prompt
        self._chains: Chains = {} if chains is None else chains
        self._matches: dict[BlockSpace, Match] = {}
        """Of the latest pick."""

    def pick(self, replicas: list[ReplicaState]) -> Pick:
        """The policy's choice among `replicas` (at least one); changes nothing but what was put off."""
        self._deployment.catch_up()
        roster = self._deployment.roster_of(replicas)
        candidates = as_candidates(replicas, roster.ids, self._cached_tokens(roster), self._deployment.others)
        chain = next((chain for space in roster.groups if (chain := self._chain(space))), None)
        pick = self._deployment.policy.pick(self._prompt.count, candidates, (chain and chain.at(0)) or b"")
        return keep_session(pick, self._session) if self._session else pick

    def miss(self, pick: Pick) -> str:
        """Why the replica of `pick`, the latest, has no more of the prompt's full blocks cached; empty: it has all.

        `elsewhere` (another replica of the same model has more), `evicted` (lately, at some replica), `other_salt`,
        `other_model`, `other_adapter`, `other_block_size` (it was sent, but they may not share), `other_block_format`
        (what this replica has cached cannot be known), `unknown` (not tokenised), or `novel`.
        """
        deployment, tokens = self._deployment, self._prompt.tokens
        replica = deployment.replicas[pick.replica]
        space = replica.block_space
        chain = self._chain(space)
        if chain is None or space is None:
            if tokens and replica.has_foreign_blocks:
                return "other_block_format"
            return "unknown" if self._prompt.count else ""
        depth = pick.cached_tokens // space.block_size
        missing = chain.at(depth)
        if missing is None:
            return ""
        if self._matches[space].is_any_beyond(depth):
            return "elsewhere"
        if missing in deployment.index.removed:
            return "evicted"
        if pick.cached_tokens:
            return "novel"
        return deployment.beginnings.difference(tokens, Namespace(space, self._prompt.salt)) or "novel"

    def expect(self, replica: ReplicaState) -> Expectation | None:
        """Index the whole prompt at `replica`, which is about to compute it: twins of a cold prefix meet there.

        To be settled once it is computed, or will not be.
        """
        space = replica.block_space
        chain = self._chain(space)
        if chain is None or space is None:
            return None
        self._deployment.beginnings.add(self._prompt.tokens, Namespace(space, self._prompt.salt))
        return self._deployment.index.expect(replica.id, chain.all())

    def _cached_tokens(self, roster: Roster) -> CachedTokens:
        """Of each replica."""
        self._matches.clear()
        if len(roster.groups) == 1:
            return self._matched(next(iter(roster.groups)), roster.ids)
        cached = dict.fromkeys(roster.ids, 0)
        for space, alike in roster.groups.items():
            matched = self._matched(space, alike)
            matched.settle(range(len(alike)))
            cached.update(zip(alike, matched.at_most(), strict=True))
        return Known(cached.values())

    def _matched(self, space: BlockSpace | None, alike: tuple[str, ...]) -> CachedTokens:
        """Of the replicas of one space."""
        chain = self._chain(space)
        if chain is None or space is None:
            return Known([0] * len(alike))
        match = self._deployment.index.match(chain, alike)
        self._matches[space] = match
        return Matched(match, space.block_size)

    def _chain(self, space: BlockSpace | None) -> Chain | None:
        prompt = self._prompt
        if space is None or not prompt.tokens:
            return None
        if space not in self._chains:
            self._chains[space] = Chain(space.root(prompt.salt), prompt.tokens, space.block_size)
        return self._chains[space]
