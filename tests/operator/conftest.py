"""A world of plain data that carries out intentions, for tests of decisions."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from quire_api.v1alpha1 import LLMDeployment, from_object
from quire_operator.decide import Decision, decide
from quire_operator.world import (
    DrainReplica,
    Failure,
    Intention,
    Key,
    Observed,
    Phase,
    ReplicaState,
    RestartReplica,
    ResumeReplica,
    ServeRoute,
    StartReplica,
    StopReplica,
    WithdrawRoute,
)


def deployment(name: str = "tiny", *, generation: int = 1, created: str = "", model: dict | None = None, **spec):
    return from_object(
        {
            "apiVersion": "quire.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": name, "generation": generation, "creationTimestamp": created or None},
            "spec": {"model": {"source": "file://m", **(model or {})}, **spec},
        }
    )


@dataclass
class SimulatedWorld:
    """Replicas start, become ready, routable and counted, finish requests and stop, one tick a second."""

    start_ticks: int = 2
    now: float = 1000.0
    replicas: dict[str, ReplicaState] = field(default_factory=dict)
    routes: dict = field(default_factory=dict)
    gateways: int = 1
    broken: Callable[[ReplicaState], bool] = lambda replica: False
    closed_gates: tuple[str, ...] = ()
    age: dict[str, int] = field(default_factory=dict)
    log: list[Intention] = field(default_factory=list)
    findings: dict = field(default_factory=dict)
    complaints: dict = field(default_factory=dict)
    fits: dict = field(default_factory=dict)

    def observe(self) -> Observed:
        return Observed(
            replicas=list(self.replicas.values()),
            routes=dict(self.routes),
            gateways=self.gateways,
            url="http://gateway",
            findings=self.findings,
            complaints=self.complaints,
            fits=self.fits,
        )

    def apply(self, intention: Intention) -> None:
        self.log.append(intention)
        match intention:
            case StartReplica(wish, name, revision):
                assert name not in self.replicas
                self.replicas[name] = ReplicaState(Key.of(wish), name, revision, Phase.STARTING)
                self.age[name] = 0
            case RestartReplica(name, failures):
                was = self.replicas[name]
                self.replicas[name] = replace(
                    was, phase=Phase.STARTING, failures=failures, ready_at=None, is_routable=False
                )
                self.age[name] = 0
            case DrainReplica(name, deadline):
                self.replicas[name] = replace(self.replicas[name], is_draining=True, drain_deadline=deadline)
            case ResumeReplica(name):
                self.replicas[name] = replace(self.replicas[name], is_draining=False, drain_deadline=None)
            case StopReplica(name):
                if self.replicas[name].phase is Phase.EXITED:
                    del self.replicas[name]
                else:
                    self.replicas[name] = replace(self.replicas[name], phase=Phase.STOPPING)
            case ServeRoute(key, route):
                self.routes[key] = route
            case WithdrawRoute(key):
                self.routes.pop(key, None)

    def tick(self) -> None:
        self.now += 1
        for name, replica in list(self.replicas.items()):
            self.age[name] += 1
            match replica.phase:
                case Phase.STOPPING:
                    del self.replicas[name]
                case Phase.STARTING if self.age[name] >= self.start_ticks:
                    if self.broken(replica):
                        self.crash(name)
                    else:
                        self.replicas[name] = replace(replica, phase=Phase.READY, ready_at=self.now, in_flight=0)
                case Phase.READY if not replica.is_routable:
                    self.replicas[name] = replace(replica, is_routable=self.gateways > 0, is_counted=False)
                case Phase.READY if not replica.is_counted:
                    gates = self.closed_gates
                    self.replicas[name] = replace(replica, is_counted=not gates, closed_gates=gates)
                case Phase.READY if replica.is_draining and replica.in_flight:
                    self.replicas[name] = replace(replica, in_flight=replica.in_flight - 1)

    def crash(self, name: str, reason: str = "EngineExited", message: str = "the engine exited") -> None:
        self.replicas[name] = replace(
            self.replicas[name],
            phase=Phase.EXITED,
            is_routable=False,
            in_flight=None,
            failure=Failure(reason, message, self.now),
        )

    def load(self, name: str, in_flight: int) -> None:
        self.replicas[name] = replace(self.replicas[name], in_flight=in_flight)

    def step(self, *deployments: LLMDeployment) -> Decision:
        """Decide once and carry it out; time stands still."""
        decision = decide(list(deployments), self.observe(), self.now)
        for intention in decision.intentions:
            self.apply(intention)
        return decision

    def run(self, *deployments: LLMDeployment, ticks: int = 40) -> Decision:
        """Decide and tick until nothing is left to do, at most `ticks` times."""
        decision = self.step(*deployments)
        for _ in range(ticks):
            self.tick()
            decision = self.step(*deployments)
        return decision

    def available(self) -> list[str]:
        return sorted(name for name, replica in self.replicas.items() if replica.is_available)

    def counted(self) -> list[str]:
        return [name for name in self.available() if self.replicas[name].is_counted]


@pytest.fixture(scope="session")
def make() -> Callable[..., LLMDeployment]:
    """Builds a deployment from a few spec fields."""
    return deployment


@pytest.fixture(scope="session")
def new_world() -> type[SimulatedWorld]:
    """Builds a world; for tests that need many."""
    return SimulatedWorld


@pytest.fixture
def world() -> SimulatedWorld:
    return SimulatedWorld()
