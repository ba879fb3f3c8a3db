"""Why a prompt's prefix was not cached where it went: small memories of what was, bounded and allowed to forget."""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from quire_gateway.block_space import BlockSpace

_SLOTS = 1 << 16
_MOST_BEGINNINGS = 4096
_BEGINNING_TOKENS = 16


class Removed:
    """The block keys removed lately: a table in which later ones take the places of earlier ones."""

    def __init__(self) -> None:
        self._hashes = array("q", bytes(8 * _SLOTS))

    def add(self, keys: Iterable[bytes]) -> None:
        hashes = self._hashes
        for key in keys:
            hashed = hash(key)
            hashes[hashed & (_SLOTS - 1)] = hashed

    def __contains__(self, key: bytes) -> bool:
        hashed = hash(key)
        return self._hashes[hashed & (_SLOTS - 1)] == hashed


@dataclass(frozen=True, slots=True)
class Namespace:
    """What must be equal for two prompts to share blocks."""

    space: BlockSpace
    salt: str


class Beginnings:
    """Under which namespace prompts that begin alike were last sent."""

    def __init__(self) -> None:
        self._last: OrderedDict[int, Namespace] = OrderedDict()

    def add(self, tokens: Sequence[int], namespace: Namespace) -> None:
        key = self._key(tokens)
        self._last[key] = namespace
        self._last.move_to_end(key)
        if len(self._last) > _MOST_BEGINNINGS:
            self._last.popitem(last=False)

    def difference(self, tokens: Sequence[int], namespace: Namespace) -> str:
        """What kept such a prompt from sharing; empty for nothing.

        `other_model`, `other_adapter`, `other_block_size` or `other_salt`.
        """
        last = self._last.get(self._key(tokens), namespace)
        if last.space.model_revision != namespace.space.model_revision:
            return "other_model"
        if last.space.adapter != namespace.space.adapter:
            return "other_adapter"
        if last.space.block_size != namespace.space.block_size:
            return "other_block_size"
        return "other_salt" if last.salt != namespace.salt else ""

    @staticmethod
    def _key(tokens: Sequence[int]) -> int:
        return hash(tuple(tokens[:_BEGINNING_TOKENS]))
