"""What others add to our objects and what is taken away again."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.test_build import SETTINGS, WISHES, wish

from quire_operator.build import revision_deployment, standing_objects
from quire_operator.drift import excess
from quire_operator.merge import merge_template
from quire_operator.plan import covers


def manifests(name: str) -> list[dict]:
    return [revision_deployment(wish(name), "r", 2, SETTINGS), *standing_objects(wish(name), 2, "key", SETTINGS)]


def as_served(manifest: dict) -> dict:
    """With what the API server adds by itself."""
    live = copy.deepcopy(manifest)
    notes = {**live["metadata"].get("annotations", {}), "somebodys": "note"}
    live["metadata"] |= {"uid": "u", "resourceVersion": "1", "annotations": notes}
    if live["kind"] == "Deployment":
        pod = live["spec"]["template"]["spec"]
        defaults = {"dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler"}
        pod |= defaults | {"serviceAccount": pod.get("serviceAccountName")}
        live["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"] = "now"
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            for field, value in {"resources": {}, "terminationMessagePolicy": "File"}.items():
                container.setdefault(field, value)
    return live


@pytest.mark.parametrize("name", WISHES)
def test_what_the_api_server_adds_and_notes_of_others_stay(name):
    for manifest in manifests(name):
        assert excess(as_served(manifest), manifest) is None


ADDITIONS = {
    "sidecar": lambda pod: pod["containers"].append({"name": "theirs", "image": "x"}),
    "init": lambda pod: pod.setdefault("initContainers", []).append({"name": "theirs", "image": "x"}),
    "variable": lambda pod: pod["containers"][0]["env"].append({"name": "THEIRS", "value": "1"}),
    "variables": lambda pod: pod["containers"][0].update(envFrom=[{"secretRef": {"name": "theirs"}}]),
    "volume": lambda pod: pod["volumes"].append({"name": "theirs", "emptyDir": {}}),
    "mount": lambda pod: pod["containers"][0]["volumeMounts"].append({"name": "theirs", "mountPath": "/theirs"}),
    "hook": lambda pod: pod["containers"][0].update(workingDir="/theirs"),
    "network": lambda pod: pod.update(hostNetwork=True),
    "node": lambda pod: pod.update(nodeName="theirs"),
}


@given(name=st.sampled_from(sorted(WISHES)), added=st.sets(st.sampled_from(sorted(ADDITIONS)), min_size=1))
def test_what_others_add_to_a_pod_goes_and_nothing_else_does(name, added):
    manifest = manifests(name)[0]
    live = as_served(manifest)
    for addition in added:
        ADDITIONS[addition](live["spec"]["template"]["spec"])
    change = excess(live, manifest)
    mended = merge_template(live["spec"]["template"], change["spec"]["template"])
    assert "theirs" not in str(mended)
    assert "THEIRS" not in str(mended)
    live["spec"]["template"] = mended
    assert covers(live, manifest)
    assert excess(live, manifest) is None


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "NetworkPolicy"])
def test_a_label_that_is_added_to_a_selector_goes(kind):
    (manifest,) = (m for m in manifests("smallest") if m["kind"] == kind)
    live = as_served(manifest)
    place = live["spec"].get("selector") or live["spec"]["podSelector"]
    place.get("matchLabels", place)["theirs"] = "1"
    assert covers(live, manifest)
    change = excess(live, manifest)
    assert str(change).count("None") == 1
    assert "theirs" not in str(merge_template(live, change))
