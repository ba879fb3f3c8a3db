"""Which revision the replicas of a deployment are to have once the operator, or an image it starts, is another.

A spec names a revision. The same spec becomes other pods under an operator with other images, settings or code: these
are a revision of their own, rolled out like an edit of the spec, and until it is a deployment's turn its Deployment
stays just as it was made. So an upgrade exchanges the replicas of a few deployments at a time, and one whose new
replicas never serve keeps the others from beginning.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from quire_api.v1alpha1 import LLMDeployment
from quire_operator.build import LABEL_REVISION, MADE_FROM, TEMPLATE, labels_of, revision_deployment
from quire_operator.build_pod import Settings, pod_template
from quire_operator.merge import BadTemplate, Manifest
from quire_operator.metrics import RENEWALS
from quire_operator.plan import covers
from quire_operator.revision import REVISION_LENGTH, revision_of, spec_marks
from quire_operator.world import NO_ROOM, Key, ReplicaState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """What replicas are to be."""

    revision: str
    template: str | None = None
    """Mark of their pods; None: another operator made them, and of their Deployment only the number changes."""


@dataclass(frozen=True)
class Standing:
    """What there is of a spec: as this operator would make it, and as another one did."""

    revision: str
    """As this operator makes it; its Deployment may exist or not."""
    template: str
    """Mark of its pods; empty where there can be none."""
    former: str | None = None
    """The revision of replicas that another one made; None: there are none."""
    is_under_way: bool = False
    """Both have replicas."""
    serves: bool = False
    """A replica of the former one is available."""


def template_mark(deployment: LLMDeployment, settings: Settings) -> str:
    """Hash of the pods that this operator makes of the spec, without what a Deployment keeps from its beginning.

    Raises:
        BadTemplate: `spec.podTemplate` has a shape that cannot be merged.
    """
    return _hash(pod_template(deployment, labels_of(deployment), 0, 0.0, settings))


def standing_of(deployment: LLMDeployment, live: Sequence[Manifest], settings: Settings) -> Standing:
    """Of a deployment with these Deployments."""
    base = revision_of(deployment)
    try:
        mark = template_mark(deployment, settings)
    except BadTemplate:  # said when it is rehearsed
        return Standing(base, "")
    same = [each for each in live if made_from(each) & set(spec_marks(deployment))]
    ours = [each for each in same if _is_as_we_make_it(each, mark, deployment, settings)]
    others = [each for each in same if each not in ours and _wanted(each)]
    if ours:
        revision = _revision(max(ours, key=_presence))
    elif any(_revision(each) == base for each in live):
        revision = _hash([base, mark])
    else:
        revision = base
    if not others:
        return Standing(revision, mark)
    former = max(others, key=_presence)
    return Standing(
        revision,
        mark,
        _revision(former),
        is_under_way=any(_wanted(each) for each in ours),
        serves=any(_available(each) for each in others),
    )


def made_from(live: Manifest) -> set[str]:
    """Marks of the spec that a Deployment was made from; before there were any, its revision was one."""
    written = (live["metadata"].get("annotations") or {}).get(MADE_FROM)
    return set(str(written).split()) if written else {_revision(live)}


def are_under_way(deployments: Iterable[Manifest]) -> bool:
    """Whether two Deployments of one spec have replicas."""
    seen: set[str] = set()
    for each in deployments:
        if _wanted(each):
            if seen & made_from(each):
                return True
            seen |= made_from(each)
    return False


def finds_no_room(replicas: Iterable[ReplicaState], revision: str, since: float) -> bool:
    """Whether all replicas of the revision that do not serve have had no place in the cluster since that unix time."""
    coming = [replica for replica in replicas if replica.revision == revision and not replica.is_available]
    failures = [replica.failure for replica in coming]
    return bool(coming) and all(f is not None and f.reason in NO_ROOM and f.at <= since for f in failures)


class Turns:
    """Who may renew its replicas now: `at_a_time` deployments that serve, the others in the order of their names.

    One that finds no room for a new replica waits on and keeps nobody from beginning: it shows nothing of the image.

    wake: looks at a deployment whose turn has come.
    """

    def __init__(self, at_a_time: int, wake: Callable[[Iterable[Key]], None]) -> None:
        self._at_a_time = at_a_time
        self._wake = wake
        self._running: set[Key] = set()
        self._roomless: set[Key] = set()
        """Of those that run."""
        self._waiting: set[Key] = set()

    def resume(self, running: Iterable[Key]) -> None:
        """Begin with what another leader has begun."""
        self._running, self._roomless, self._waiting = set(running), set(), set()
        self._count()

    def has(self, key: Key) -> bool:
        """Whether it is its turn; else it waits, and is woken."""
        if key not in self._running:
            if not self._room():
                self._waiting.add(key)
                self._count()
                return False
            log.info("%s: its replicas are exchanged for those of this operator", key)
            self.take(key)
        return True

    def take(self, key: Key) -> None:
        """It has begun already."""
        self._waiting.discard(key)
        self._running.add(key)
        self._count()

    def place(self, key: Key, *, has_room: bool) -> None:
        """Whether the cluster has room for the new replicas of one whose turn it is."""
        if key not in self._running or has_room == (key not in self._roomless):
            return
        if has_room:
            self._roomless.discard(key)
            return
        log.warning("%s: there is no room for its new replicas; others are exchanged meanwhile", key)
        self._roomless.add(key)
        self._wake_next()

    def leave(self, key: Key) -> None:
        """It has arrived, or there is nothing to renew any more."""
        was_waiting = key in self._waiting
        self._waiting.discard(key)
        self._roomless.discard(key)
        if key in self._running:
            self._running.discard(key)
        elif not was_waiting:
            return
        self._count()
        self._wake_next()

    def _room(self) -> int:
        return max(self._at_a_time - len(self._running - self._roomless), 0)

    def _wake_next(self) -> None:
        self._wake(sorted(self._waiting)[: self._room()])

    def _count(self) -> None:
        RENEWALS.labels("running").set(len(self._running))
        RENEWALS.labels("waiting").set(len(self._waiting))


def _is_as_we_make_it(live: Manifest, mark: str, deployment: LLMDeployment, settings: Settings) -> bool:
    written = (live["metadata"].get("annotations") or {}).get(TEMPLATE)
    if written:
        return bool(written == mark)
    made = revision_deployment(deployment, _revision(live), _wanted(live), settings, live)
    return covers(live.get("spec", {}).get("template"), made["spec"]["template"])


def _presence(live: Manifest) -> tuple[int, int, str]:
    return _available(live), _wanted(live), _revision(live)


def _wanted(live: Manifest) -> int:
    return int(live.get("spec", {}).get("replicas", 1))


def _available(live: Manifest) -> int:
    return int(live.get("status", {}).get("availableReplicas", 0))


def _revision(live: Manifest) -> str:
    return str(live["metadata"].get("labels", {}).get(LABEL_REVISION, ""))


def _hash(data: object) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:REVISION_LENGTH]
