"""What a decision sees and what it may ask for: the border between pure logic and a cluster or one machine."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from quire_api.v1alpha1 import REASON_PATTERN, AccessSpec, LLMDeployment, ModelFacts

LONGEST_REASON = 128
"""Characters of a reason; an Event holds no more."""


@dataclass(frozen=True, order=True)
class Key:
    """Identity of a deployment."""

    namespace: str
    name: str

    @classmethod
    def of(cls, deployment: LLMDeployment) -> "Key":
        return cls(deployment.metadata.namespace, deployment.metadata.name)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Phase(StrEnum):
    """Life of a replica's process; draining is a mark beside it."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    EXITED = "exited"
    """It ended without having been asked to; it keeps its place until it is restarted or given up."""


NO_ROOM = frozenset({"GpuUnavailable", "InsufficientResources", "QuotaExceeded", "Unschedulable"})
"""Reasons of a replica that has no place yet."""


@dataclass(frozen=True)
class Failure:
    """How a replica ended last."""

    reason: str
    """One word, as in a condition: EngineExited, DoesNotFit, WeightsNotFound ..."""
    message: str
    at: float
    """Unix time in seconds."""

    @property
    def is_final(self) -> bool:
        """Whether the same process would end the same way again: only another spec helps."""
        return self.reason == "InvalidSpec"


def reason_or(otherwise: str, said: object) -> str:
    """`said` by a process, where it can stand in a condition as a reason."""
    is_word = isinstance(said, str) and len(said) <= LONGEST_REASON and re.fullmatch(REASON_PATTERN, said)
    return str(said) if is_word else otherwise


@dataclass(frozen=True)
class Loading:
    """How far a replica is that has not begun to serve."""

    reason: str
    message: str
    share: float
    """Of the way, 0 to 1."""


@dataclass(frozen=True)
class Fit:
    """Whether the model fits the memory of a replica, by arithmetic."""

    fits: bool | None
    """None: something needed for the arithmetic is not known."""
    message: str


@dataclass(frozen=True)
class ReplicaState:
    """One replica as it is."""

    key: Key
    id: str
    revision: str
    phase: Phase
    ready_at: float | None = None
    """When this start became ready; None while it has not."""
    is_routable: bool = False
    """A gateway has answered a request through it since it started; stays true for as long as the process lives."""
    is_counted: bool = True
    """The cluster calls it Ready, as endpoints and budgets count: a moment after it is routable. Elsewhere always."""
    closed_gates: tuple[str, ...] = ()
    """Readiness gates, asked for in podTemplate, that keep it from being counted until somebody opens them."""
    is_lost: bool = False
    """No gateway has got an answer through it for a while. A word for people: it takes part in decisions as before."""
    in_flight: int | None = None
    """Requests it holds, summed over the gateways; None: not known."""
    warmth: float | None = None
    """Prompt tokens that its cache has saved of late, summed over the gateways; None: not known."""
    is_draining: bool = False
    drain_deadline: float | None = None
    drain_timeout_s: float = 30.0
    failures: int = 0
    """Crashes in a row before this start, as the last RestartReplica said."""
    failure: Failure | None = None
    """The latest crash, kept over restarts."""
    loading: Loading | None = None
    """Where somebody can tell."""

    @property
    def is_available(self) -> bool:
        """Whether it serves and goes on serving."""
        return self.phase is Phase.READY and self.is_routable and not self.is_draining


@dataclass(frozen=True)
class Route:
    """What gateways must know of a deployment beside its replicas."""

    served_names: tuple[str, ...]
    policy: str
    api_keys_secret: str | None = None
    scales_from_zero: bool = False
    """Its requests are to be held while it has no replica: the first of them brings one."""
    access: AccessSpec = field(default_factory=AccessSpec)
    """Limits of its keys, and whether they share a cache."""


@dataclass(frozen=True)
class Finding:
    """Something that keeps new replicas from starting, found before any process ran."""

    reason: str
    message: str


@dataclass(frozen=True)
class Observed:
    """The world at one moment."""

    replicas: Sequence[ReplicaState] = ()
    routes: Mapping[Key, Route] = field(default_factory=dict)
    findings: Mapping[Key, Finding] = field(default_factory=dict)
    complaints: Mapping[Key, Finding] = field(default_factory=dict)
    """What is wrong and is said, and keeps nothing from going on."""
    facts: Mapping[Key, ModelFacts] = field(default_factory=dict)
    fits: Mapping[Key, Fit] = field(default_factory=dict)
    revisions: Mapping[Key, str] = field(default_factory=dict)
    """Where replicas are to have another revision than the spec alone says."""
    waiting: frozenset[Key] = frozenset()
    """Deployments whose replicas another operator made, and that are not to be exchanged yet."""
    gateways: int = 0
    """Gateways that report."""
    url: str = ""


@dataclass(frozen=True)
class StartReplica:
    """Bring up a replica that does not exist yet."""

    deployment: LLMDeployment
    replica: str
    revision: str


@dataclass(frozen=True)
class RestartReplica:
    """Bring an exited replica up again, as it was, and remember how often it has crashed in a row."""

    replica: str
    failures: int


@dataclass(frozen=True)
class DrainReplica:
    """Send it nothing new; the mark and the deadline come back in the next observation."""

    replica: str
    deadline: float


@dataclass(frozen=True)
class ResumeReplica:
    """Take the draining mark off again."""

    replica: str


@dataclass(frozen=True)
class StopReplica:
    """End it: politely, then firmly after a grace period; an exited one is forgotten."""

    replica: str


@dataclass(frozen=True)
class ServeRoute:
    """Let gateways serve these names."""

    key: Key
    route: Route


@dataclass(frozen=True)
class WithdrawRoute:
    """Let gateways forget the deployment."""

    key: Key


Intention = StartReplica | RestartReplica | DrainReplica | ResumeReplica | StopReplica | ServeRoute | WithdrawRoute


class World(Protocol):
    """A place where replicas live: Kubernetes, or the processes of one machine."""

    async def observe(self) -> Observed:
        """What there is now."""

    async def apply(self, intention: Intention) -> None:
        """Begin to carry out one intention; its effect shows in later observations. Applying twice does no harm."""
