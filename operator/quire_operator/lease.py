"""Leadership by a Lease: at most one operator writes.

The holder renews; others take over once they have seen no renewal for the lease's duration on their own clock, so that
clocks need not agree. `is_held` is False in time: a holder that could not renew stops before others may begin.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from quire_operator.kube import ApiError, ApiUnavailable, Kube
from quire_operator.merge import Manifest
from quire_operator.metrics import IS_LEADER

log = logging.getLogger(__name__)

API = "coordination.k8s.io/v1"
RELEASE_S = 3.0


class Lease:
    """Seconds: `duration_s` until others may take over, `renew_s` between renewals."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        identity: str,
        *,
        duration_s: float = 15.0,
        renew_s: float = 4.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.changed = asyncio.Event()
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._duration_s = duration_s
        self._renew_s = renew_s
        self._clock = clock
        self._held_until = float("-inf")
        self._seen_version = ""
        self._seen_at = float("-inf")
        self._said = False

    def is_held(self) -> bool:
        """Whether this operator may write now."""
        return self._clock() < self._held_until

    async def run(self) -> None:
        """Try to get and to keep the lease until cancelled; then give it back."""
        try:
            while True:
                began = self._clock()
                try:
                    # Not wait_for: Python 3.11's forgets a cancellation that comes with the answer.
                    async with asyncio.timeout(self._duration_s / 2):
                        is_ours = await self._try()
                    self._held_until = began + self._duration_s * 2 / 3 if is_ours else float("-inf")
                except (ApiError, ApiUnavailable, TimeoutError) as error:
                    log.warning("the lease cannot be renewed: %s", error)
                self._say()
                await asyncio.sleep(self._renew_s if self.is_held() else self._renew_s / 2)
        finally:
            # Also where it is not held as far as we know: whoever is cancelled may not have read that it was taken.
            self._held_until = float("-inf")
            with contextlib.suppress(ApiError, ApiUnavailable, TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(RELEASE_S):
                    await self._release()
            self._say()

    async def _try(self) -> bool:
        lease = await self._kube.get(API, "Lease", self._namespace, self._name)
        try:
            if lease is None:
                await self._kube.create(self._manifest({}, 0))
                return True
            spec = lease.get("spec", {})
            version = lease["metadata"]["resourceVersion"]
            if version != self._seen_version:
                self._seen_version, self._seen_at = version, self._clock()
            holder = spec.get("holderIdentity") or ""
            duration_s = float(spec.get("leaseDurationSeconds") or self._duration_s)
            if holder not in ("", self._identity) and self._clock() < self._seen_at + duration_s:
                return False
            transitions = int(spec.get("leaseTransitions") or 0) + (holder != self._identity)
            written = await self._kube.replace(self._manifest(lease["metadata"], transitions))
            self._seen_version, self._seen_at = written["metadata"]["resourceVersion"], self._clock()
            return True
        except ApiError as error:
            if error.status != 409:
                raise
            # Whose answer was lost may have been sent twice, and then the conflict is with ourselves.
            after = await self._kube.get(API, "Lease", self._namespace, self._name)
            return after is not None and after.get("spec", {}).get("holderIdentity") == self._identity

    async def _release(self) -> None:
        lease = await self._kube.get(API, "Lease", self._namespace, self._name)
        if lease is not None and lease.get("spec", {}).get("holderIdentity") == self._identity:
            lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._kube.replace(lease)

    def _manifest(self, metadata: Manifest, transitions: int) -> Manifest:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        kept = {"resourceVersion": metadata["resourceVersion"]} if metadata else {}
        return {
            "apiVersion": API,
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace, **kept},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(self._duration_s),
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }

    def _say(self) -> None:
        if self.is_held() != self._said:
            self._said = self.is_held()
            IS_LEADER.set(self._said)
            log.info("this operator %s", "leads" if self._said else "does not lead any more")
            self.changed.set()
