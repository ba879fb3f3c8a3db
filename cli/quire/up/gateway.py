"""The gateway process: started first, restarted when it falls, ended first so that no request is cut."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from quire.up.commands import Programs, gateway_command, gateway_environment
from quire.up.process import Child

RESTART_FIRST_S = 0.5
RESTART_LONGEST_S = 30.0
STABLE_AFTER_S = 30.0


class GatewayProcess:
    """Keeps one gateway running until it is stopped."""

    def __init__(
        self,
        programs: Programs,
        table: Path,
        log: Path,
        *,
        host: str,
        port: int,
        internal_key: str,
        drain_s: float,
        workers: int,
        announce: Callable[[str], None],
    ) -> None:
        self._argv = gateway_command(programs, table, host, port, drain_s, workers)
        self._environment = gateway_environment(internal_key)
        self._log = log
        self._drain_s = drain_s
        self._announce = announce
        self._child: Child | None = None
        self._is_stopping = False

    async def run(self) -> None:
        """Start it, and start it again whenever it ends, less and less eagerly; returns after `stop`."""
        delay = RESTART_FIRST_S
        while not self._is_stopping:
            began = time.monotonic()
            try:
                self._child = await Child.start(self._argv, self._log, environment=self._environment)
            except OSError as error:
                how = f"cannot be started: {error.strerror}"
            else:
                await self._child.exited.wait()
                how = self._child.how_it_ended()
            if self._is_stopping:
                return
            if time.monotonic() - began > STABLE_AFTER_S:
                delay = RESTART_FIRST_S
            self._announce(f"the gateway {how}; it starts again in {delay:.1f} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, RESTART_LONGEST_S)

    async def stop(self) -> None:
        """Let requests in flight end, for as long as replicas may drain."""
        self._is_stopping = True
        if self._child:
            await self._child.stop(self._drain_s + 5.0)

    def kill(self) -> None:
        """End it at once."""
        self._is_stopping = True
        if self._child:
            self._child.kill()
