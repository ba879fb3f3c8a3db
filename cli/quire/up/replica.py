"""One engine replica of this machine: its process, and what is known of it."""

import json
import signal
import socket
import time
from dataclasses import dataclass, field

from quire.up.process import Child
from quire_api import wire
from quire_api.v1alpha1 import LLMDeployment
from quire_operator.world import Failure, Key, Phase, ReplicaState, reason_or

STOP_GRACE_S = 15.0
"""From SIGTERM to SIGKILL, for an engine that has been drained already."""
ABSENCE_ASSUMED_S = 3.0
UNHEALTHY_AFTER = 3
"""Failed health checks in a row that end a replica."""


@dataclass
class LocalReplica:
    """Mutable state behind one ReplicaState."""

    key: Key
    id: str
    revision: str
    deployment: LLMDeployment
    drain_timeout_s: float
    child: Child | None = None
    url: str = ""
    started_at: float = 0.0
    ready_at: float | None = None
    info: wire.ModelInfo | None = None
    is_stopping: bool = False
    is_draining: bool = False
    drain_deadline: float | None = None
    is_drain_seen: bool = False
    """The gateway knows that it drains, so its count can only fall."""
    was_absent: bool = False
    """A gateway report since this start did not call it routable yet: what later ones say is about this start."""
    is_routable: bool = False
    in_flight: int | None = None
    warmth: float | None = None
    failures: int = 0
    failure: Failure | None = None
    has_exited: bool = False
    unhealthy: int = 0
    sickness: str = ""
    """What its last health check said, if that was bad."""
    checked_at: float = field(default_factory=time.monotonic)

    @property
    def phase(self) -> Phase:
        if self.is_stopping:
            return Phase.STOPPING
        if self.has_exited:
            return Phase.EXITED
        return Phase.STARTING if self.ready_at is None else Phase.READY

    def state(self) -> ReplicaState:
        """As decisions see it."""
        return ReplicaState(
            key=self.key,
            id=self.id,
            revision=self.revision,
            phase=self.phase,
            ready_at=self.ready_at,
            is_routable=self.is_routable,
            in_flight=self.in_flight if self.is_drain_seen or not self.is_draining else None,
            warmth=self.warmth,
            is_draining=self.is_draining,
            drain_deadline=self.drain_deadline,
            drain_timeout_s=self.drain_timeout_s,
            failures=self.failures,
            failure=self.failure,
        )

    def started(self, child: Child | None, url: str) -> None:
        """A new process took its place."""
        self.child, self.url, self.started_at = child, url, time.time()
        self.ready_at, self.info, self.in_flight, self.warmth = None, None, None, None
        self.has_exited = self.is_routable = self.was_absent = False
        self.unhealthy = 0

    def ended(self, failure: Failure) -> None:
        """It is gone without having been asked to."""
        self.has_exited, self.failure = True, failure
        self.is_routable, self.in_flight = False, None

    def heard(self, report: wire.ReplicaReport | None) -> bool:
        """Take in a gateway's word; True if that changed anything."""
        before = (self.is_routable, self.in_flight, self.is_drain_seen)
        if report is None or not report.is_routable:
            self.was_absent = True
        if report is not None and self.ready_at is not None:
            known = self.was_absent or time.time() - self.ready_at > ABSENCE_ASSUMED_S
            self.is_routable = self.is_routable or (report.is_routable and known)
            self.in_flight, self.warmth = report.in_flight, report.warmth
            self.is_drain_seen = self.is_draining and report.reason == "Draining"
        return before != (self.is_routable, self.in_flight, self.is_drain_seen)

    def failure_found(self, termination_log_text: str) -> Failure:
        """Why the process ended: what it left in its termination log, else its exit code and last line."""
        assert self.child is not None
        try:
            said = json.loads(termination_log_text)
            return Failure(reason_or("EngineExited", said["reason"]), str(said["message"]), time.time())
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        code = self.child.exit_code
        if self.unhealthy >= UNHEALTHY_AFTER:
            return Failure("Unhealthy", f"{self.id} was ended after failed health checks: {self.sickness}", time.time())
        reason = "EngineKilled" if code in (-signal.SIGKILL, -signal.SIGTERM) else "EngineExited"
        return Failure(reason, f"{self.id} {self.child.how_it_ended()}", time.time())


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
