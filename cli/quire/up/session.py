"""One run of `quire up`: look, decide, act, say; again on every change."""

import asyncio
import contextlib
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path

from watchfiles import awatch

from quire.up.commands import Programs
from quire.up.display import Display
from quire.up.findings import findings
from quire.up.gateway import GatewayProcess
from quire.up.gpus import Gpus
from quire.up.scaling import EVERY_S, Scaling
from quire.up.state import StateDir
from quire.up.wish import Wish
from quire.up.world import LocalWorld
from quire_api.errors import UserError
from quire_api.signals import ending_signals
from quire_api.v1alpha1_values import duration_seconds
from quire_operator.decide import Decision, decide

LONGEST_NAP_S = 5.0
LOOK_AGAIN_MS = 2000
"""The file is looked at this often even if no change was reported, as on network file systems."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class Options:
    """What the command line says."""

    file: Path
    host: str
    port: int
    programs: Programs = field(default_factory=Programs)
    gateway_workers: int = 1


class Session:
    """Everything that lives as long as one `quire up`."""

    def __init__(self, options: Options, wish: Wish, state: StateDir, gpus: Gpus, display: Display) -> None:
        self._options = options
        self._wish = wish
        self._state = state
        self._display = display
        self._ending = asyncio.Event()
        host = "127.0.0.1" if options.host == "0.0.0.0" else options.host
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{options.port}"
        self.world = LocalWorld(state, options.file.parent, options.programs, gpus, display.announce)
        self.world.url = self.url
        self._gpus = gpus.total
        self._take_over_wish()
        self.world.gateway_key = "" if options.host in LOOPBACK else secrets.token_urlsafe(24)
        self._scaling = Scaling(self.world, state, display.announce)
        self._scaling.restore(wish.deployments)
        self._gateway = GatewayProcess(
            options.programs,
            state.routing_table,
            state.log("gateway"),
            host=options.host,
            port=options.port,
            internal_key=self.world.gateway_key,
            drain_s=self._longest_drain(),
            workers=options.gateway_workers,
            announce=display.announce,
        )

    async def run(self) -> None:
        """Serve until the first of `ending_signals`, then drain and end everything; the second one ends it at once."""
        loop = asyncio.get_running_loop()
        for number in ending_signals():
            loop.add_signal_handler(number, self._on_signal)
        self.world.publish()
        works = (self._gateway.run(), self.world.watch(), self._follow_edits())
        tasks = [asyncio.create_task(work) for work in works]
        deciding = [asyncio.create_task(work) for work in (self._reconcile_for_ever(), self._scale_for_ever())]
        ending = asyncio.create_task(self._ending.wait())
        try:
            done, _ = await asyncio.wait([*tasks, *deciding, ending], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {ending}:
                task.result()
        finally:
            self._ending.set()
            for task in deciding:
                task.cancel()
            # What a decision was starting must be known before it can be ended.
            await asyncio.gather(*deciding, return_exceptions=True)
            await self._end()
            for task in (*tasks, ending):
                task.cancel()
            await asyncio.gather(*tasks, ending, return_exceptions=True)

    async def _reconcile_for_ever(self) -> None:
        while not self._ending.is_set():
            self.world.changed.clear()
            nap = LONGEST_NAP_S
            try:
                decision = await self._reconcile()
                if decision.wake_at is not None:
                    nap = min(decision.wake_at - time.time(), nap)
            except OSError as error:
                self._display.announce(f"{self._state.path} cannot be written: {error.strerror}; trying again")
            # Not wait_for: in Python 3.11 it forgets a cancellation that comes together with the change.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(nap, 0.01)):
                    await self.world.changed.wait()

    async def _reconcile(self) -> Decision:
        wish = self._wish
        decision = decide(list(wish.deployments.values()), await self.world.observe(), time.time())
        for intention in decision.intentions:
            await self.world.apply(intention)
        self.world.publish()
        before = {key: deployment.status for key, deployment in wish.deployments.items()}
        for key, status in decision.statuses.items():
            wish.deployments[key] = wish.deployments[key].model_copy(update={"status": status})
        deployments = list(wish.deployments.values())
        if before != decision.statuses or not self._display.has_shown:
            self._state.write_status(deployments, self._options.file, f"{self.url}/v1")
        self._display.show(deployments, (await self.world.observe()).replicas)
        return decision

    async def _scale_for_ever(self) -> None:
        while not self._ending.is_set():
            try:
                await self._scaling.step(self._wish.deployments)
            except OSError as error:
                self._display.announce(f"{self._state.path} cannot be written: {error.strerror}; trying again")
            await asyncio.sleep(EVERY_S)

    async def _follow_edits(self) -> None:
        file = self._options.file
        wakes = awatch(
            file.parent,
            watch_filter=lambda _, path: Path(path).name == file.name,
            recursive=False,
            step=100,
            rust_timeout=LOOK_AGAIN_MS,
            yield_on_timeout=True,
        )
        async for _ in wakes:
            if self._wish.is_current():
                continue
            try:
                changed = self._wish.read()
            except UserError as error:
                self._display.announce(f"the edit is not used, what runs goes on: {error}")
                continue
            if changed:
                self._display.announce(f"{file} has changed")
                self._take_over_wish()
                self.world.publish()
                self.world.changed.set()

    def _take_over_wish(self) -> None:
        self.world.secrets = self._wish.secrets
        self.world.findings = findings(self._wish.deployments.values(), self._gpus)

    async def _end(self) -> None:
        self._display.announce("ending: requests in flight may finish; press Ctrl-C again to end at once")
        await self._gateway.stop()
        await self.world.close()
        with contextlib.suppress(OSError):
            self._state.write_status([], self._options.file, "")
        self._display.announce("everything has stopped")

    def _on_signal(self) -> None:
        if self._ending.is_set():
            self._gateway.kill()
            self.world.kill()
        self._ending.set()

    def _longest_drain(self) -> float:
        return max(
            duration_seconds(deployment.spec.rollout.drain_timeout) for deployment in self._wish.deployments.values()
        )
