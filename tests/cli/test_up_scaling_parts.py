"""Parts of scaling in `quire up` that need no process: what an edit keeps, and what outlives a restart."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from quire.up.gpus import Gpus
from quire.up.replica import LocalReplica
from quire.up.scaling import Scaling
from quire.up.state import StateDir
from quire.up.wish import Wish, with_replicas
from quire.up.world import LocalWorld
from quire_api import wire
from quire_operator.world import Key

KEY = Key("default", "tiny")


def resource(replicas: int = 1, autoscaling: str = "{minReplicas: 0, maxReplicas: 5, idleTimeout: 60s}") -> str:
    return f"""
apiVersion: quire.dev/v1alpha1
kind: LLMDeployment
metadata: {{name: tiny}}
spec:
  model: {{source: "file://model"}}
  replicas: {replicas}
  autoscaling: {autoscaling}
"""


@pytest.fixture
def wish(tmp_path) -> Wish:
    (tmp_path / "model").mkdir()
    (tmp_path / "a.yaml").write_text(resource())
    wish = Wish(tmp_path / "a.yaml")
    wish.read()
    return wish


@pytest.fixture
def scaling(tmp_path):
    """A scaler whose gateway says what `scaling.told` says."""
    state = StateDir.open(tmp_path / "state")
    world = LocalWorld(state, tmp_path, None, Gpus([]), lambda event: None)
    said: list[str] = []
    scaling = Scaling(world, state, said.append)
    scaling.said = said
    scaling.told = None

    async def ask_load():
        return scaling.told

    world.ask_load = ask_load
    yield scaling
    state.close()


def load(**more) -> wire.GatewayLoad:
    entry = {"in_flight": 0, "held": 0, "queued_tokens": 0, "requests": 0, "idle_s": 0.0, **more}
    return wire.GatewayLoad(
        gateway="g", deployments=[wire.DeploymentLoad(deployment="tiny", namespace="default", **entry)]
    )


def rewrite(wish: Wish, text: str) -> None:
    wish.file.write_text(text)
    wish.read()


class TestEdits:
    def test_the_laws_number_outlives_an_edit_of_something_else(self, wish):
        wish.deployments[KEY] = with_replicas(wish.deployments[KEY], 4)
        rewrite(wish, resource(autoscaling="{minReplicas: 0, maxReplicas: 9}"))
        assert wish.deployments[KEY].spec.replicas == 4
        assert wish.deployments[KEY].spec.autoscaling.max_replicas == 9
        assert wish.deployments[KEY].metadata.generation == 2

    def test_an_edit_of_replicas_is_no_new_generation(self, wish):
        wish.deployments[KEY] = with_replicas(wish.deployments[KEY], 4)
        rewrite(wish, resource(replicas=2))
        assert wish.deployments[KEY].spec.replicas == 4
        assert wish.deployments[KEY].metadata.generation == 1

    def test_without_autoscaling_the_file_says_how_many(self, wish):
        wish.deployments[KEY] = with_replicas(wish.deployments[KEY], 4)
        rewrite(wish, resource(replicas=2, autoscaling="null"))
        assert wish.deployments[KEY].spec.replicas == 2


class TestSteps:
    async def test_a_held_request_wakes_and_the_reason_is_said(self, wish, scaling):
        wish.deployments[KEY] = with_replicas(wish.deployments[KEY], 0)
        scaling.told = load(held=2)
        await scaling.step(wish.deployments)
        assert wish.deployments[KEY].spec.replicas == 1
        assert scaling.said == ["tiny scales 0 -> 1: 2 requests held for the first replica, 32 to a replica"]

    async def test_a_silent_gateway_changes_nothing(self, wish, scaling):
        wish.deployments[KEY] = with_replicas(wish.deployments[KEY], 3)
        await scaling.step(wish.deployments)
        assert wish.deployments[KEY].spec.replicas == 3
        assert not scaling.said

    async def test_nobody_is_asked_without_autoscaling(self, wish, scaling):
        rewrite(wish, resource(replicas=2, autoscaling="null"))
        scaling.told = load(held=100)
        await scaling.step(wish.deployments)
        assert wish.deployments[KEY].spec.replicas == 2


class TestRestart:
    async def test_the_number_outlives_it(self, wish, scaling):
        wish.deployments[KEY] = with_replicas(wish.deployments[KEY], 3)
        await scaling.step(wish.deployments)
        rewrite(wish, resource())
        wish.deployments[KEY] = with_replicas(wish.deployments[KEY], 1)
        scaling.restore(wish.deployments)
        assert wish.deployments[KEY].spec.replicas == 3

    async def test_what_the_law_knows_of_others_outlives_it(self, wish, scaling, tmp_path):
        scaling.told = load(in_flight=1)
        for replicas in (1, 4, 1, 4, 1):
            wish.deployments[KEY] = with_replicas(wish.deployments[KEY], replicas)
            await scaling.step(wish.deployments)
        assert "somebody else changed replicas" in scaling.said[-1]
        scaling._save(wish.deployments)
        said = []
        heir = Scaling(scaling._world, SimpleNamespace(path=tmp_path / "state"), said.append)
        heir.restore(wish.deployments)
        scaling.told = load(in_flight=1000)
        before = wish.deployments[KEY].spec.replicas
        await heir.step(wish.deployments)
        assert wish.deployments[KEY].spec.replicas == before
        assert "somebody else changed replicas" in said[-1]

    @pytest.mark.parametrize(("age_s", "replicas"), [(10, 0), (299, 0), (301, 1)])
    def test_not_beyond_the_time_the_law_would_have_kept_it(self, wish, scaling, tmp_path, age_s, replicas):
        # scaleDownDelay is 5 minutes, idleTimeout 1
        saved = {str(KEY): {"replicas": 0, "at": time.time() - age_s}}
        (tmp_path / "state" / "scaling.json").write_text(json.dumps(saved))
        scaling.restore(wish.deployments)
        assert wish.deployments[KEY].spec.replicas == replicas

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"default/tiny": 3}', '{"default/tiny": {"replicas": "x"}}'])
    def test_a_broken_file_is_as_none(self, wish, scaling, tmp_path: Path, text):
        (tmp_path / "state" / "scaling.json").write_text(text)
        scaling.restore(wish.deployments)
        assert wish.deployments[KEY].spec.replicas == 1


def test_a_replica_is_as_warm_as_the_gateway_says(wish):
    replica = LocalReplica(KEY, "tiny-0", "r", wish.deployments[KEY], 30.0)
    replica.started(None, "http://127.0.0.1:1")
    replica.ready_at = time.time()
    report = wire.ReplicaReport(
        deployment="tiny", namespace="default", replica="tiny-0", is_routable=True, in_flight=1, warmth=7.5
    )
    replica.heard(report)
    assert replica.state().warmth == 7.5
    replica.started(None, "http://127.0.0.1:2")
    assert replica.state().warmth is None
