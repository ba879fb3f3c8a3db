"""Labels of nodes, asked for when they are needed and kept for a while; without the right to look there are none."""

import time
from collections.abc import Callable, Mapping

from quire_operator.kube import ApiError, Kube

KEEP_S = 600.0


class Nodes:
    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._clock = clock
        self._known: dict[str, tuple[float, Mapping[str, str]]] = {}

    async def labels(self, name: str) -> Mapping[str, str]:
        """
        Raises:
            ApiError, ApiUnavailable
        """
        known = self._known.get(name)
        if known is not None and self._clock() - known[0] < KEEP_S:
            return known[1]
        try:
            node = await self._kube.get("v1", "Node", None, name)
        except ApiError as error:
            # Roles in single namespaces reach no nodes.
            if error.status not in (401, 403):
                raise
            node = None
        labels = (node or {}).get("metadata", {}).get("labels") or {}
        self._known[name] = self._clock(), labels
        return labels
