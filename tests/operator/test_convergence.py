"""Whatever crashes and edits come, the world arrives at the wish, and no step on the way breaks a promise."""

from hypothesis import given, settings
from hypothesis import strategies as st

from quire_api.v1alpha1 import LLMDeployment
from quire_api.v1alpha1_values import share_of
from quire_operator.decide import decide, wanted_replicas
from quire_operator.revision import revision_of
from quire_operator.world import DrainReplica, Phase, StartReplica, StopReplica

shares = st.one_of(st.integers(0, 3), st.sampled_from(["0%", "25%", "50%", "100%"]))
rollouts = st.tuples(shares, shares).filter(lambda pair: any(int(str(share).rstrip("%")) for share in pair))
wishes = st.fixed_dictionaries({"replicas": st.integers(0, 5), "length": st.integers(1, 2)})
edits = st.lists(st.tuples(st.integers(1, 12), wishes), min_size=1, max_size=4)
events = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["crash", "load", "crash", "gateway"]), st.integers(0, 7)),
    max_size=12,
)


def min_available(wish: LLMDeployment) -> int:
    wanted = wanted_replicas(wish)
    rollout = wish.spec.rollout
    unavailable = share_of(wanted, rollout.max_unavailable, round_up=False)
    if unavailable == 0 and share_of(wanted, rollout.max_surge, round_up=True) == 0:
        unavailable = 1
    return max(wanted - unavailable, 0)


def limit(wish: LLMDeployment) -> int:
    wanted = wanted_replicas(wish)
    return wanted + share_of(wanted, wish.spec.rollout.max_surge, round_up=True)


def check_promises(world, wish: LLMDeployment, intentions) -> None:
    """`intentions` have been decided on the world as it is and are not carried out yet."""
    replicas = world.replicas
    leaving = {i.replica for i in intentions if isinstance(i, DrainReplica | StopReplica)}
    available = set(world.available())
    for served in (available, set(world.counted())):
        if leaving & served:
            assert len(served - leaving) >= min_available(wish)
    for intention in intentions:
        if isinstance(intention, StopReplica):
            replica = replicas[intention.replica]
            if replica.phase is Phase.READY:
                assert replica.is_draining
                assert replica.in_flight == 0 or world.now >= replica.drain_deadline
    starts = sum(isinstance(i, StartReplica) for i in intentions)
    assert starts == 0 or len(replicas) + starts <= limit(wish)


@settings(max_examples=300, deadline=None)
@given(rollout=rollouts, edits=edits, events=events, start_ticks=st.integers(1, 5))
def test_every_history_converges_without_breaking_a_promise(new_world, make, rollout, edits, events, start_ticks):
    world = new_world(start_ticks=start_ticks)
    by_tick: dict[int, list] = {}
    for tick, kind, number in events:
        by_tick.setdefault(tick, []).append((kind, number))
    wish, due = None, 0
    pending = list(edits)
    tick = 0
    while pending or tick < due + 400:
        if pending and tick >= due:
            ticks, fields = pending.pop(0)
            wish = make(
                replicas=fields["replicas"],
                engine={"maxModelLen": fields["length"]},
                rollout={"maxSurge": rollout[0], "maxUnavailable": rollout[1], "drainTimeout": "20s"},
            )
            due = tick + ticks
        for kind, number in by_tick.pop(tick, ()):
            _disturb(world, kind, number)
        if tick > 41:
            world.gateways = 1
        decision = decide([wish], world.observe(), world.now)
        check_promises(world, wish, decision.intentions)
        for intention in decision.intentions:
            world.apply(intention)
        if not pending and tick > 41 and not decision.intentions and _has_arrived(world, wish):
            break
        world.tick()
        tick += 1
    assert _has_arrived(world, wish)
    assert decide([wish], world.observe(), world.now).intentions == []


def _has_arrived(world, wish: LLMDeployment) -> bool:
    return len(world.replicas) == len(world.available()) == wish.spec.replicas and all(
        replica.revision == revision_of(wish) for replica in world.replicas.values()
    )


def _disturb(world, kind: str, number: int) -> None:
    running = sorted(name for name, r in world.replicas.items() if r.phase in (Phase.STARTING, Phase.READY))
    if kind == "gateway":
        world.gateways = number % 2
    elif running and kind == "crash":
        world.crash(running[number % len(running)])
    elif running:
        name = running[number % len(running)]
        if world.replicas[name].phase is Phase.READY:
            world.load(name, number * 5)
