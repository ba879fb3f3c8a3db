"""Leaving without losing a request."""

import asyncio
import contextlib
import logging

from quire_api.signals import ending_signals
from quire_runtime.server.service import Service

log = logging.getLogger(__name__)


class StopSignal:
    """Of `ending_signals`, the first asks to drain, a second one to leave at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in ending_signals():
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        (self.insisted if self.asked.is_set() else self.asked).set()


async def drain(service: Service, stop: StopSignal) -> bool:
    """Refuse new requests, let those in flight end; True if all did before the timeout or a second signal."""
    service.is_draining = True
    timeout_s = service.config.shutdown_timeout
    log.info("draining %d requests, for at most %g s", service.in_flight, timeout_s)
    idle = asyncio.ensure_future(service.is_idle.wait())
    insisted = asyncio.ensure_future(stop.insisted.wait())
    await asyncio.wait((idle, insisted), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for waiting in (idle, insisted):
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
    if service.in_flight:
        why = "at once, as a second signal asks" if stop.insisted.is_set() else "as they did not end in time"
        log.warning("%d requests are broken off %s", service.in_flight, why)
    return service.in_flight == 0
