"""Several gateways' reports as one word, statuses as events, routes as a table."""

from quire_api import wire
from quire_api.v1alpha1 import Condition, LLMDeploymentStatus
from quire_operator.events import happenings
from quire_operator.gateways import words_of
from quire_operator.pods import GatewayWord
from quire_operator.world import Key


def entry(*, routable: bool, in_flight: int, reason: str = "") -> wire.GatewayReport:
    replica = wire.ReplicaReport(
        deployment="tiny", namespace="models", replica="a", is_routable=routable, in_flight=in_flight, reason=reason
    )
    return wire.GatewayReport(replicas=[replica])


def test_one_routable_gateway_is_enough_and_requests_add_up():
    words = words_of([entry(routable=True, in_flight=2), entry(routable=False, in_flight=3), wire.GatewayReport()])
    assert words == {Key("models", "tiny"): {"a": GatewayWord(True, 5, False)}}


def test_a_drain_is_seen_once_every_gateway_has_seen_it():
    one, other = entry(routable=True, in_flight=1, reason="Draining"), entry(routable=True, in_flight=0)
    assert not words_of([one, other])[Key("models", "tiny")]["a"].is_drain_seen
    assert words_of([one, one])[Key("models", "tiny")]["a"].is_drain_seen


def status(ready: str, reason: str, *, replicas: int = 1, revision: str = "r") -> LLMDeploymentStatus:
    condition = Condition(type="Ready", status=ready, reason=reason, message="m", last_transition_time="t")
    return LLMDeploymentStatus(conditions=[condition], replicas=replicas, revision=revision)


def kinds(before, after) -> list[tuple[str, str]]:
    return [(happening.kind, happening.reason) for happening in happenings(before, after)]


def test_events_tell_changes_and_nothing_else():
    loading, serving = status("False", "Loading"), status("True", "Serving")
    assert kinds(None, loading) == [("Normal", "Loading")]
    assert kinds(loading, loading) == []
    assert kinds(loading, serving) == [("Normal", "Serving")]
    assert kinds(serving, status("False", "CrashLoop")) == [("Warning", "CrashLoop")]
    assert kinds(serving, status("True", "Serving", replicas=3)) == [("Normal", "Scaled")]
    assert kinds(serving, status("True", "Serving", revision="s")) == [("Normal", "RolloutStarted")]
