"""How long an engine may take to start before the kubelet tries anew."""

import pytest
from tests.operator.conftest import deployment

from quire_operator.build import revision_deployment
from quire_operator.build_pod import Settings
from quire_operator.revision import revision_of
from quire_operator.start import LONGEST_S, SHORTEST_S, UNKNOWN_S, start_allowance_s

GB = 10**9
SETTINGS = Settings("e", "a")


@pytest.mark.parametrize(
    ("spec", "weights", "seconds"),
    [
        ({}, None, UNKNOWN_S),
        ({}, 2_000_000, SHORTEST_S),
        ({}, 16 * GB, 620),  # 8B in bf16: 300 + 320
        ({"resources": {"gpus": 2}}, 140 * GB, 3100),  # 70B: 300 + 2,800, not by what two GPUs could hold
        ({"resources": {"gpus": 8}}, 810 * GB, 16_500),  # 405B: 300 + 16,200
        ({}, 10**14, LONGEST_S),
        ({"resources": {"gpus": 1}}, None, 4424),  # 192 GiB / 50 MB/s
        ({"resources": {"gpus": 8}}, None, 33_286),
        ({"resources": {"memory": "64Gi"}}, None, 1675),
        ({"resources": {"memory": "1Gi"}}, None, SHORTEST_S),
        ({"engine": {"startTimeout": "90s"}}, 810 * GB, 90),
        ({"engine": {"startTimeout": "30h"}}, None, 108_000),
        ({"engine": {"startTimeout": "1ms"}}, None, 1),
    ],
)
def test_the_allowance_follows_what_is_loaded(spec, weights, seconds):
    assert start_allowance_s(deployment(**spec).spec, weights) == seconds


def engine(manifest) -> dict:
    return manifest["spec"]["template"]["spec"]["containers"][0]


def test_the_startup_probe_grants_the_allowance_and_no_other_probe_ends_a_start():
    wish = deployment(resources={"gpus": 2})
    probes = engine(revision_deployment(wish, "r", 1, SETTINGS, None, 140 * GB))
    startup = probes["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] == 3100
    assert "initialDelaySeconds" not in startup
    assert startup["httpGet"]["path"] == "/ready"
    assert "livenessProbe" in probes


def test_pods_of_a_revision_keep_the_allowance_that_they_began_with():
    """Else every pod would be replaced once the size of the weights is known."""
    wish = deployment(resources={"gpus": 1})
    first = revision_deployment(wish, "r", 1, SETTINGS)
    again = revision_deployment(wish, "r", 1, SETTINGS, first, 16 * GB)
    assert engine(again) == engine(first)
    assert again["metadata"]["annotations"] == first["metadata"]["annotations"]


@pytest.mark.parametrize("annotations", [None, {}, {"quire.dev/start-timeout-seconds": "soon"}])
def test_a_deployment_of_an_older_operator_keeps_its_hour(annotations):
    live = {"metadata": {"annotations": annotations}}
    manifest = revision_deployment(deployment(resources={"gpus": 1}), "r", 1, SETTINGS, live)
    assert engine(manifest)["startupProbe"]["failureThreshold"] == 3600


def test_the_allowance_is_no_part_of_a_revision_until_somebody_sets_it(make):
    assert revision_of(make()) == revision_of(make(engine={}))
    assert revision_of(make(engine={"startTimeout": "1h"})) != revision_of(make())
