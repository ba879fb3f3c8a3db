"""LocalWorld: replicas as processes of this machine, found by the gateway in a routing table on disk."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx
import msgspec

from quire.up.commands import Programs, model_location, serve_command, serve_environment
from quire.up.gpus import Gpus, lacking
from quire.up.process import Child
from quire.up.replica import STOP_GRACE_S, UNHEALTHY_AFTER, LocalReplica, free_port
from quire.up.state import StateDir, write_atomically
from quire_api import wire
from quire_api.access import read_api_keys, wire_limits
from quire_api.v1alpha1 import LLMDeployment, ModelFacts
from quire_api.v1alpha1_documents import Secret
from quire_api.v1alpha1_values import duration_seconds
from quire_operator.world import (
    DrainReplica,
    Failure,
    Finding,
    Intention,
    Key,
    Observed,
    RestartReplica,
    ResumeReplica,
    Route,
    ServeRoute,
    StartReplica,
    StopReplica,
    WithdrawRoute,
)

T = TypeVar("T", bound=msgspec.Struct)

POLL_S = 0.25
REPORT_TIMEOUT_S = 2.0
HEALTH_EVERY_S = 2.0
HEALTH_TIMEOUT_S = 10.0


class LocalWorld:
    """The World of one machine. `changed` is set whenever an observation would differ from the one before."""

    def __init__(
        self, state: StateDir, folder: Path, programs: Programs, gpus: Gpus, announce: Callable[[str], None]
    ) -> None:
        self.changed = asyncio.Event()
        self.url = ""
        self.gateway_key = ""
        self.is_gateway_reporting = False
        self.secrets: Mapping[tuple[str, str], Secret] = {}
        self.findings: Mapping[Key, Finding] = {}
        self.replicas: dict[str, LocalReplica] = {}
        self._state = state
        self._folder = folder
        self._programs = programs
        self._gpus = gpus
        self._announce = announce
        self._routes: dict[Key, Route] = {}
        self._internal_keys: dict[Key, str] = {}
        self._http = httpx.AsyncClient(trust_env=False, timeout=HEALTH_TIMEOUT_S)
        self._stops: set[asyncio.Task[None]] = set()
        self._written = b""
        self._cannot_write = False
        self._checks: dict[str, asyncio.Task[None]] = {}

    async def observe(self) -> Observed:
        return Observed(
            replicas=[replica.state() for replica in self.replicas.values()],
            routes=dict(self._routes),
            findings=self.findings,
            facts=self._facts(),
            gateways=int(self.is_gateway_reporting),
            url=f"{self.url}/v1",
        )

    async def apply(self, intention: Intention) -> None:
        match intention:
            case StartReplica(deployment, name, revision):
                if name not in self.replicas:
                    timeout_s = duration_seconds(deployment.spec.rollout.drain_timeout)
                    replica = LocalReplica(Key.of(deployment), name, revision, deployment, timeout_s)
                    self.replicas[name] = replica
                    await self._start(replica)
            case RestartReplica(name, failures):
                replica = self.replicas[name]
                if replica.has_exited:
                    replica.failures = failures
                    await self._start(replica)
            case DrainReplica(name, deadline):
                replica = self.replicas[name]
                replica.is_draining, replica.is_drain_seen, replica.drain_deadline = True, False, deadline
                self._announce(f"{name} drains")
            case ResumeReplica(name):
                replica = self.replicas[name]
                replica.is_draining, replica.drain_deadline = False, None
                self._announce(f"{name} serves again")
            case StopReplica(name):
                self._begin_stop(self.replicas[name])
            case ServeRoute(key, route):
                self._routes[key] = route
            case WithdrawRoute(key):
                self._routes.pop(key, None)
        self.publish()
        self.changed.set()

    async def watch(self) -> None:
        """Keep asking the gateway and the engines how they are, until cancelled."""
        while True:
            await self._ask_gateway()
            now = time.monotonic()
            for replica in list(self.replicas.values()):
                if replica.is_stopping or replica.has_exited or replica.id in self._checks:
                    continue
                if replica.ready_at is None or now - replica.checked_at >= HEALTH_EVERY_S:
                    check = self._check_ready if replica.ready_at is None else self._check_health
                    task = asyncio.create_task(check(replica))
                    self._checks[replica.id] = task
                    task.add_done_callback(partial(self._forget_check, replica.id))
            await asyncio.sleep(POLL_S)

    async def ask_load(self) -> wire.GatewayLoad | None:
        """What the gateway has to do now; None: it does not say."""
        return await self._of_gateway("load", wire.GatewayLoad)

    async def _of_gateway(self, page: str, kind: type[T]) -> T | None:
        headers = {wire.HEADER_INTERNAL_KEY: self.gateway_key} if self.gateway_key else {}
        try:
            answer = await self._http.get(f"{self.url}/internal/v1/{page}", headers=headers, timeout=REPORT_TIMEOUT_S)
            return msgspec.json.decode(answer.content, type=kind) if answer.is_success else None
        except (httpx.HTTPError, msgspec.MsgspecError):
            return None

    def _forget_check(self, replica: str, _: asyncio.Task[None]) -> None:
        self._checks.pop(replica, None)

    async def close(self) -> None:
        """End every replica, politely first."""
        for replica in list(self.replicas.values()):
            self._begin_stop(replica)
        if self._stops:
            await asyncio.gather(*self._stops)
        for task in list(self._checks.values()):
            task.cancel()
        await self._http.aclose()

    def kill(self) -> None:
        """End every replica at once."""
        for replica in self.replicas.values():
            if replica.child:
                replica.child.kill()

    def publish(self) -> None:
        """Write the routing table if it changed: ready replicas of every route, draining ones marked.

        Where it cannot be written the gateway goes on by the old one; call again.
        """
        table = wire.RoutingTable(
            deployments=[self._deployment(key, route) for key, route in sorted(self._routes.items())]
        )
        data = msgspec.json.encode(table)
        if data != self._written:
            try:
                write_atomically(self._state.routing_table, data, mode=0o600)
            except OSError as error:
                if not self._cannot_write:
                    self._announce(f"{self._state.routing_table} cannot be written: {error.strerror}; trying again")
                self._cannot_write = True
                return
            self._written = data
            self._cannot_write = False

    def _deployment(self, key: Key, route: Route) -> wire.Deployment:
        secret = self.secrets.get((key.namespace, route.api_keys_secret or ""))
        return wire.Deployment(
            name=key.name,
            namespace=key.namespace,
            served_names=list(route.served_names),
            policy=route.policy,
            internal_key=self._internal_key(key),
            api_keys=list(read_api_keys(secret.values, route.access)[0]) if secret else [],
            limits=wire_limits(route.access.limits),
            shares_cache=route.access.shared_cache,
            scales_from_zero=route.scales_from_zero,
            replicas=[
                wire.Replica(id=replica.id, url=replica.url, is_draining=replica.is_draining)
                for replica in self.replicas.values()
                if replica.key == key and replica.ready_at and not replica.is_stopping and not replica.has_exited
            ],
        )

    def _internal_key(self, key: Key) -> str:
        return self._internal_keys.setdefault(key, secrets.token_urlsafe(24))

    async def _start(self, replica: LocalReplica) -> None:
        spec = replica.deployment.spec
        gpus = self._gpus.take(replica.id, spec.resources.gpus)
        if gpus is None:
            what = lacking(spec.resources.gpus, self._gpus.free, self._gpus.total)
            message = f"{replica.id} needs {what}; lower replicas or resources.gpus"
            replica.ended(Failure("GpuUnavailable", message, time.time()))
            return
        port = free_port()
        auth = spec.model.auth
        secret = self.secrets.get((replica.key.namespace, auth.secret_ref.name)) if auth else None
        termination_log = self._state.termination_log(replica.id)
        termination_log.unlink(missing_ok=True)
        environment = serve_environment(
            replica.deployment, self._internal_key(replica.key), gpus, termination_log, secret.values if secret else {}
        )
        location = model_location(replica.deployment, self._folder)
        argv = serve_command(self._programs, replica.deployment, location, port)
        try:
            child = await Child.start(
                argv,
                self._state.log(replica.id),
                environment=environment,
                on_exit=lambda: self._on_exit(replica, child),
            )
        except OSError as error:
            replica.ended(Failure("EngineNotStarted", f"{argv[0]} cannot be started: {error.strerror}", time.time()))
            return
        replica.started(child, f"http://127.0.0.1:{port}")
        again = " again" if replica.failures else ""
        self._announce(f"{replica.id} starts{again} (pid {child.pid}, log {child.log})")

    def _on_exit(self, replica: LocalReplica, child: Child) -> None:
        if replica.child is not child or replica.is_stopping:
            return
        self._gpus.release(replica.id)
        with contextlib.suppress(OSError):
            left = self._state.termination_log(replica.id)
            text = left.read_text() if left.exists() else ""
            replica.ended(replica.failure_found(text))
            self._announce(f"{replica.id} is down: {replica.failure.message if replica.failure else ''}")
        self.publish()
        self.changed.set()

    def _begin_stop(self, replica: LocalReplica) -> None:
        if replica.is_stopping:
            return
        replica.is_stopping = True
        self.publish()
        task = asyncio.create_task(self._stop(replica))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    async def _stop(self, replica: LocalReplica) -> None:
        if replica.child and not replica.has_exited:
            await replica.child.stop(STOP_GRACE_S)
        self._gpus.release(replica.id)
        self.replicas.pop(replica.id, None)
        self._announce(f"{replica.id} stopped")
        self.publish()
        self.changed.set()

    async def _ask_gateway(self) -> None:
        before = self.is_gateway_reporting
        report = await self._of_gateway("replicas", wire.GatewayReport)
        self.is_gateway_reporting = report is not None
        changed = before != self.is_gateway_reporting
        if report is not None:
            said = {(entry.namespace, entry.replica): entry for entry in report.replicas}
            for replica in self.replicas.values():
                was_routable = replica.is_routable
                changed |= replica.heard(said.get((replica.key.namespace, replica.id)))
                if replica.is_routable and not was_routable:
                    self._announce(f"{replica.id} serves")
        if changed:
            self.changed.set()

    async def _check_ready(self, replica: LocalReplica) -> None:
        child = replica.child
        headers = {wire.HEADER_INTERNAL_KEY: self._internal_key(replica.key)}
        try:
            answer = await self._http.get(f"{replica.url}/ready", headers=headers)
            if not answer.is_success or replica.child is not child or replica.has_exited:
                return
            with contextlib.suppress(httpx.HTTPError, msgspec.MsgspecError):
                about = await self._http.get(f"{replica.url}/internal/v1/model", headers=headers)
                if about.is_success:
                    replica.info = msgspec.json.decode(about.content, type=wire.ModelInfo)
        except httpx.HTTPError:
            return
        if replica.child is child and not replica.has_exited:
            replica.ready_at, replica.checked_at = time.time(), time.monotonic()
            self.publish()
            self.changed.set()

    async def _check_health(self, replica: LocalReplica) -> None:
        child = replica.child
        try:
            answer = await self._http.get(f"{replica.url}/health")
            sick = "" if answer.is_success else answer.text[:400]
        except httpx.HTTPError as error:
            sick = f"no answer ({type(error).__name__})"
        if replica.child is not child or child is None or replica.is_stopping:
            return
        replica.checked_at = time.monotonic()
        replica.unhealthy = replica.unhealthy + 1 if sick else 0
        replica.sickness = sick
        if replica.unhealthy >= UNHEALTHY_AFTER and child.exit_code is None:
            child.kill()

    def _facts(self) -> dict[Key, ModelFacts]:
        facts: dict[Key, ModelFacts] = {}
        for replica in self.replicas.values():
            if replica.info is not None:
                facts[replica.key] = ModelFacts(
                    architecture=replica.info.architecture or self._architecture(replica.deployment),
                    parameters=replica.info.num_parameters or None,
                    context_length=replica.info.max_model_len,
                    revision=replica.info.model_revision,
                )
        return facts

    def _architecture(self, deployment: LLMDeployment) -> str | None:
        """From the checkpoint's config.json, where it lies on this machine."""
        try:
            config = json.loads((Path(model_location(deployment, self._folder)) / "config.json").read_text())
            return str(config["architectures"][0])
        except (OSError, ValueError, KeyError, IndexError, TypeError):
            return None
