"""Finds out what was deleted while no watch told of it.

After a break kopf lists a kind anew and tells of all there is, but not of what has gone since: for that we compare
lists of names and versions with the store.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from quire_api.v1alpha1 import KIND
from quire_operator.build import OURS
from quire_operator.kube import ApiError, ApiUnavailable, Kube
from quire_operator.merge import place_of
from quire_operator.rights import Kind
from quire_operator.store import Store
from quire_operator.world import Key

log = logging.getLogger(__name__)

EVERY_S = 300.0
SETTLE_S = 2.0
"""Events of one new list come one after the other."""


class Resync:
    """Compares what the store holds with the API server's lists.

    wake: hears whom the found deletions concern.
    nothing_there: called where there is not one object, and so no event that would tell that all have been listed.
    """

    def __init__(
        self,
        kube: Kube,
        store: Store,
        kinds: Mapping[str, Kind],
        namespaces: Sequence[str],
        wake: Callable[[Iterable[Key]], None],
        nothing_there: Callable[[], None],
    ) -> None:
        self._kube = kube
        self._store = store
        self._kinds = kinds
        self._namespaces = namespaces or (None,)
        self._wake = wake
        self._nothing_there = nothing_there
        self._is_wanted = asyncio.Event()
        self._is_wanted.set()

    def has_broken(self) -> None:
        """kopf has listed a kind anew. Another kind's break may have gone unnoticed: an empty list tells nothing."""
        self._is_wanted.set()

    async def run(self) -> None:
        """Compare for ever: at the start, soon after a break, and now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._is_wanted.wait()
            await asyncio.sleep(SETTLE_S)
            self._is_wanted.clear()
            try:
                if not sum([await self.compare(kind) for kind in self._kinds]):
                    self._nothing_there()
            except (ApiError, ApiUnavailable) as error:
                log.warning("what we know cannot be compared with the API server: %s", error)

    async def compare(self, kind: str) -> int:
        """Forget what the API server does not know any more; how many objects of the kind there are.

        Raises:
            ApiError, ApiUnavailable
        """
        group, version, _ = self._kinds[kind]
        api_version = f"{group}/{version}" if group else version
        count = 0
        for namespace in self._namespaces:
            as_of, listed = await self._kube.places(api_version, kind, namespace, "" if kind == KIND else OURS)
            count += len(listed)
            for body in self._store.gone(kind, namespace, listed, as_of):
                log.info("%s %s/%s was deleted unseen", kind, *place_of(body))
                self._wake(self._store.remove(kind, body))
        return count
