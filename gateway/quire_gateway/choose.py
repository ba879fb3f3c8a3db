"""From a prompt and the replicas to a pick: hashing, matching, cost, and the speculative insert."""

from collections.abc import Iterator, Sequence

from quire_api import blocks
from quire_gateway.cost import Pick
from quire_gateway.fleet import DeploymentState, ReplicaState, candidate
from quire_gateway.index import Expectation
from quire_gateway.models import Prompt


class Chain:
    """A prompt's block keys under one root, computed as far as they have been looked at."""

    def __init__(self, root: bytes, tokens: Sequence[int], block_size: int) -> None:
        self._known: list[bytes] = []
        self._rest = blocks.chain(root, tokens, block_size)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._known
        for key in self._rest:
            self._known.append(key)
            yield key

    def all(self) -> list[bytes]:
        """Every key of the chain."""
        self._known.extend(self._rest)
        return self._known


class Choice:
    """Chooses for one request, and again without what failed; blocks are hashed at most once."""

    def __init__(self, deployment: DeploymentState, prompt: Prompt) -> None:
        self._deployment = deployment
        self._prompt = prompt
        self._chains: dict[tuple[str, int], Chain] = {}

    def pick(self, replicas: Sequence[ReplicaState]) -> Pick:
        """The policy's choice among `replicas` (at least one); changes nothing."""
        cached = self._cached_tokens(replicas)
        candidates = [candidate(replica, cached.get(replica.id, 0)) for replica in replicas]
        return self._deployment.policy.pick(self._prompt.count, candidates)

    def expect(self, replica: ReplicaState) -> Expectation | None:
        """Index the whole prompt at `replica`, which is about to compute it: twins of a cold prefix meet there.

        To be settled once it is computed, or will not be.
        """
        chain = self._chain(replica)
        return None if chain is None else self._deployment.index.expect(replica.id, chain.all())

    def _cached_tokens(self, replicas: Sequence[ReplicaState]) -> dict[str, int]:
        sharing: dict[tuple[str, int], list[str]] = {}
        for replica in replicas:
            if replica.info is not None:
                sharing.setdefault((replica.info.model_revision, replica.info.block_size), []).append(replica.id)
                self._chain(replica)
        cached = {}
        for facts, names in sharing.items():
            chain = self._chains.get(facts)
            if chain is not None:
                for name, length in self._deployment.index.match(chain, names).items():
                    cached[name] = length * facts[1]
        return cached

    def _chain(self, replica: ReplicaState) -> Chain | None:
        info, tokens = replica.info, self._prompt.tokens
        if info is None or not tokens:
            return None
        facts = info.model_revision, info.block_size
        if facts not in self._chains:
            self._chains[facts] = Chain(self._prompt.root(info), tokens, info.block_size)
        return self._chains[facts]
