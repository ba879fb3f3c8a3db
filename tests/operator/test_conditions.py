"""What the status says in each situation, and that it stays still while nothing changes."""

from dataclasses import replace

import pytest

from quire_api.v1alpha1 import ModelFacts
from quire_operator.conditions import LEAVES, invalid_status
from quire_operator.decide import decide
from quire_operator.revision import revision_of
from quire_operator.world import Finding, Fit, Key, Loading, Phase

KEY = Key("default", "tiny")


def said(status) -> dict[str, tuple[str, str]]:
    return {condition.type: (condition.status, condition.reason) for condition in status.conditions}


def status_now(world, *deployments):
    return decide(list(deployments), world.observe(), world.now).statuses[KEY]


def test_the_whole_tree_is_there_from_the_first_moment(make, world):
    status = status_now(world, make())
    assert set(said(status)) == {"Ready", *LEAVES}
    assert said(status)["Ready"] == ("False", "Loading")
    assert said(status)["Resolved"] == ("True", "Resolved")
    assert said(status)["Fits"] == ("Unknown", "NotStarted")


def test_a_start_goes_from_loading_over_probing_to_serving(make, world):
    wish, reasons = make(replicas=2), []
    for _ in range(8):
        decision = world.step(wish)
        reason = said(decision.statuses[KEY])["Ready"][1]
        reasons += [reason] if reason not in reasons else []
        world.tick()
    assert reasons == ["Loading", "ReplicasStarting", "Serving"]


def test_serving_counts_replicas_and_names_the_endpoint(make, world):
    status = world.run(make(replicas=2, generation=7)).statuses[KEY]
    assert (status.replicas, status.ready_replicas, status.updated_replicas) == (2, 2, 2)
    assert status.selector == "quire.dev/deployment=tiny"
    assert status.url == "http://gateway"
    assert status.served_names == ["tiny"]
    assert status.observed_generation == 7
    assert {condition.observed_generation for condition in status.conditions} == {7}
    assert status.condition("Ready").message == "2 of 2 replicas serve"


def test_nothing_is_rewritten_while_nothing_changes(make, world):
    wish = make(replicas=2)
    first = world.run(wish).statuses[KEY]
    for _ in range(5):
        world.tick()
        wish = wish.model_copy(update={"status": first})
        assert world.step(wish).statuses[KEY] == first


def test_a_crash_loop_rewrites_the_status_only_at_its_steps(make, world):
    world.broken = lambda replica: True
    wish, statuses = make(), []
    for _ in range(60):
        status = world.step(wish).statuses[KEY]
        statuses += [status] if not statuses or statuses[-1] != status else []
        wish = wish.model_copy(update={"status": status})
        world.tick()
    assert len(statuses) <= 14  # six crashes and their restarts


def test_transition_times_move_with_the_status_only(make, world):
    wish = make(replicas=1)
    for _ in range(2):
        status = world.step(wish).statuses[KEY]
        wish = wish.model_copy(update={"status": status})
        world.tick()
    loading = status_now(world, wish).condition("Ready")
    assert loading.last_transition_time == "1970-01-01T00:16:40Z"  # second 1000: False from the start, reasons changed
    for _ in range(5):
        status = world.step(wish).statuses[KEY]
        wish = wish.model_copy(update={"status": status})
        world.tick()
    serving = status_now(world, wish).condition("Ready")
    assert serving.status == "True"
    assert serving.last_transition_time > loading.last_transition_time


def test_no_replicas_wanted_is_ready_and_says_why(make, world):
    status = world.run(make(replicas=0)).statuses[KEY]
    assert set(said(status).values()) == {("True", "ScaledToZero"), ("True", "Resolved")}


def test_a_killed_replica_shows_until_it_is_back(make, world):
    wish = make(replicas=2)
    world.run(wish)
    world.crash(world.available()[0], "EngineKilled", "tiny-0 was ended by SIGKILL")
    status = status_now(world, wish)
    assert said(status)["Ready"] == ("False", "EngineKilled")
    assert said(status)["Loaded"] == ("True", "Loaded")
    assert status.condition("Available").message.startswith("1 of 2 replicas available; tiny-0 was ended by SIGKILL")
    assert "starts again at" in status.condition("Available").message
    assert said(world.run(wish).statuses[KEY])["Ready"] == ("True", "Serving")


def test_one_replica_may_be_missing_where_the_spec_allows_it(make, world):
    wish = make(replicas=2, rollout={"maxUnavailable": 1})
    world.run(wish)
    world.crash(world.available()[0])
    assert said(status_now(world, wish))["Ready"] == ("True", "Serving")


def test_one_replica_that_crashes_on_and_on_is_not_hidden_by_the_others(make, world):
    wish = make(replicas=2, rollout={"maxUnavailable": 1})
    world.run(wish)
    victim = world.available()[0]
    world.broken = lambda replica: replica.id == victim
    world.crash(victim)
    status = world.run(wish).statuses[KEY]
    assert said(status)["Ready"] == ("False", "CrashLoop")
    assert said(status)["Available"][0] == "True"


@pytest.mark.parametrize(
    ("reason", "leaf"),
    [
        ("WeightsUnauthorized", "Resolved"),
        ("WeightsNotFound", "Resolved"),
        ("UnsupportedArchitecture", "Resolved"),
        ("DoesNotFit", "Fits"),
        ("GpuUnavailable", "Fits"),
        ("OutOfMemory", "Fits"),
        ("EngineExited", "Loaded"),
        ("SomethingNew", "Loaded"),
    ],
)
def test_a_failure_is_shown_by_the_leaf_that_owns_it_and_by_ready(make, world, reason, leaf):
    wish = make()
    world.step(wish)
    (name,) = world.replicas
    world.crash(name, reason, "this and that; do so")
    status = status_now(world, wish)
    assert said(status)[leaf] == ("False", reason)
    assert said(status)["Ready"] == ("False", reason)
    assert "this and that; do so" in status.condition("Ready").message


@pytest.mark.parametrize(
    ("fit", "said_of_it"),
    [
        (None, ("Unknown", "NotStarted")),
        (Fit(None, "no label"), ("Unknown", "MemoryUnknown")),
        (Fit(True, "1 of 2 GiB"), ("True", "Fits")),
        (Fit(False, "3 of 2 GiB"), ("False", "DoesNotFit")),
    ],
)
def test_arithmetic_speaks_before_any_replica_has_shown_it(make, world, fit, said_of_it):
    world.fits = {KEY: fit} if fit else {}
    world.step(make())
    status = status_now(world, make())
    assert said(status)["Fits"] == said_of_it
    if fit:
        assert status.condition("Fits").message == fit.message
    assert said(status)["Ready"][1] == ("DoesNotFit" if fit and fit.fits is False else "Loading")


def test_a_replica_that_serves_and_an_engine_that_says_no_are_believed_over_arithmetic(make, world):
    world.fits = {KEY: Fit(False, "by arithmetic")}
    assert said(world.run(make()).statuses[KEY])["Fits"] == ("True", "Fits")
    world.fits = {KEY: Fit(True, "by arithmetic")}
    world.crash(world.available()[0], "OutOfMemory", "it was killed")
    assert said(status_now(world, make()))["Fits"] == ("False", "OutOfMemory")


def test_what_the_agent_brings_is_told_by_the_replica_that_has_least(make, world):
    wish = make(replicas=2)
    world.step(wish)
    for share, name in enumerate(sorted(world.replicas)):
        loading = Loading("Downloading", f"{share + 1} of 3 GiB, 9 MB/s", share / 3)
        world.replicas[name] = replace(world.replicas[name], loading=loading)
    status = status_now(world, wish)
    assert said(status)["Loaded"] == said(status)["Ready"] == ("False", "Downloading")
    assert status.condition("Ready").message == "1 of 3 GiB, 9 MB/s"


def test_a_new_revision_that_loads_says_nothing_of_the_old_ones_fit(make, world):
    world.run(make())
    changed = make(engine={"maxModelLen": 64})
    world.step(changed)
    assert said(status_now(world, changed))["Fits"] == ("True", "RollingOut")
    world.fits = {KEY: Fit(False, "3 of 2 GiB")}
    assert said(status_now(world, changed))["Ready"] == ("False", "DoesNotFit")


def test_a_typed_reason_outlives_the_crash_loop(make, world):
    world.broken = lambda replica: True
    world.run(make())
    (name,) = world.replicas
    world.crash(name, "DoesNotFit", "too large")
    assert said(status_now(world, make()))["Ready"] == ("False", "DoesNotFit")


def test_a_finding_stands_before_everything(make, world):
    world.findings = {KEY: Finding("SecretNotFound", "add the Secret keys")}
    status = world.run(make()).statuses[KEY]
    assert said(status)["Ready"] == said(status)["Resolved"] == ("False", "SecretNotFound")
    assert not world.replicas


def test_without_a_gateway_it_is_available_but_not_routable(make, world):
    world.run(make())
    world.gateways = 0
    status = status_now(world, make())
    assert said(status)["Available"][0] == "True"
    assert said(status)["Ready"] == said(status)["Routable"] == ("False", "GatewayUnavailable")


def test_routable_falls_when_every_replica_is_lost_and_nothing_is_restarted_for_it(make, world):
    wish = make(replicas=2)
    world.run(wish)
    one, other = world.available()
    world.replicas[one] = replace(world.replicas[one], is_lost=True)
    assert said(status_now(world, wish))["Ready"] == ("True", "Serving")
    world.replicas[other] = replace(world.replicas[other], is_lost=True)
    status = status_now(world, wish)
    assert said(status)["Routable"] == said(status)["Ready"] == ("False", "ReplicasUnreachable")
    assert status.ready_replicas == 2
    assert world.step(wish).intentions == []


def test_a_rollout_under_way_stays_ready(make, world):
    world.run(make(replicas=2))
    changed = make(replicas=2, engine={"maxModelLen": 64})
    for _ in range(30):
        assert said(world.step(changed).statuses[KEY])["Ready"][0] == "True"
        world.tick()


def test_facts_of_the_model_are_kept_while_nobody_can_tell(make, world):
    facts = ModelFacts(architecture="Qwen3ForCausalLM", context_length=512)
    wish = make()
    status = wish.status.model_copy(update={"model": facts})
    assert status_now(world, wish.model_copy(update={"status": status})).model == facts


def test_an_invalid_edit_keeps_the_counts_and_names_the_field(make, world):
    before = world.run(make(replicas=2)).statuses[KEY]
    status = invalid_status(before, "spec.replicas: is -1, but must be 0 or more", 9, world.now)
    assert (status.ready_replicas, status.observed_generation) == (2, 9)
    assert said(status)["Ready"] == ("False", "InvalidSpec")
    assert said(status)["Available"][0] == "True"
    assert said(invalid_status(None, "x", 1, 0.0)) == {
        "Ready": ("False", "InvalidSpec"),
        "Resolved": ("False", "InvalidSpec"),
    }


def test_replicas_that_stop_are_no_longer_counted(make, world):
    world.run(make(replicas=2))
    world.step(make(replicas=1))
    world.step(make(replicas=1))
    stopping = [replica for replica in world.replicas.values() if replica.phase is Phase.STOPPING]
    assert len(stopping) == 1
    assert status_now(world, make(replicas=1)).replicas == 1


def test_updated_replicas_are_those_of_the_newest_revision(make, world):
    world.run(make(replicas=2))
    changed = make(replicas=2, engine={"maxModelLen": 64})
    world.step(changed)
    status = status_now(world, changed)
    assert (status.replicas, status.updated_replicas) == (3, 1)
    assert status.revision == revision_of(changed)
