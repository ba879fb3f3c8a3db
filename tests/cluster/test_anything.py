"""Whatever lies in a cluster, the operator goes on: everything is told what it is, and nothing delays another.

The CRD of this cluster lets everything through, as one does that is older or newer than its operator.
"""

import json
import uuid

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.operator.test_any_spec import specs

from quire_operator.resource import read

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**31), 2**31), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=6,
)
labels = st.sampled_from([{}, {"app.kubernetes.io/managed-by": "quire-operator"}])
annotations = st.dictionaries(
    st.sampled_from(["quire.dev/drain-deadline", "quire.dev/stopping", "quire.dev/start-timeout-seconds"]),
    st.text(max_size=6),
    max_size=2,
)
strangers = st.lists(
    st.tuples(st.sampled_from(["Service", "ServiceAccount", "Secret", "ConfigMap", "Pod"]), labels, annotations),
    max_size=2,
    unique_by=lambda stranger: stranger[0],
)
"""What lies where the operator's own objects belong, some of it under its labels."""


def is_json(value) -> bool:
    try:
        return len(json.dumps(value, allow_nan=False)) < 10_000 and json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False


objects = st.lists(st.tuples(st.one_of(specs, specs, values).filter(is_json), strangers), min_size=6, max_size=10)


@pytest.fixture(scope="module")
def cluster(new_cluster, soon):
    with new_cluster("anything") as cluster:
        definition = yaml.safe_load(cluster.kubectl("get", "crd", "llmdeployments.quire.dev", "-o", "yaml"))
        anything = {"x-kubernetes-preserve-unknown-fields": True}
        for version in definition["spec"]["versions"]:
            version["schema"]["openAPIV3Schema"] = {
                "type": "object",
                "properties": {"spec": anything, "status": anything},
            }
        definition = {**definition, "metadata": {"name": definition["metadata"]["name"]}}
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=definition)
        probe = {
            "apiVersion": "quire.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": "p"},
            "spec": {"odd": 7},
        }
        soon(
            lambda: cluster.try_kubectl("create", "--dry-run=server", "-f", "-", given=probe).returncode == 0,
            "the loose definition",
        )
        yield cluster


@pytest.fixture(scope="module")
def operator(cluster, soon):
    with cluster.operator("anything") as process:
        soon(lambda: "this operator leads" in process.says, "leadership")
        yield process


def stranger(kind: str, name: str, labels: dict, annotations: dict) -> dict:
    marks = {**labels, "quire.dev/deployment": name} if labels else {}
    bodies = {
        "Service": {"spec": {"ports": [{"port": 1}]}},
        "Secret": {"stringData": {"spec": "{", "key": "x"}},
        "Pod": {"spec": {"nodeName": "fake", "containers": [{"name": "engine", "image": "x"}]}},
    }
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {
            "name": f"{name}-internal" if kind == "Secret" else name,
            "labels": {**marks, "quire.dev/revision": "former"} if marks else {},
            "annotations": annotations,
        },
        **bodies.get(kind, {}),
    }


@settings(
    max_examples=4,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(objects=objects)
def test_everything_is_told_what_it_is_and_the_good_one_serves(cluster, operator, soon, tmp_path_factory, objects):
    namespace = f"any-{uuid.uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", namespace)
    soon(lambda: cluster.try_kubectl("get", "sa", "default", "-n", namespace).returncode == 0, "its service account")
    wished, found = [], []
    for number, (spec, beside) in enumerate(objects):
        name = f"odd-{number}"
        wished.append(resource(name, spec))
        found += [stranger(kind, name, labels, annotations) for kind, labels, annotations in beside]
    file = tmp_path_factory.mktemp("objects") / "list.json"
    good = resource("good", {"model": {"source": "file:///m", "servedNames": [namespace]}})
    for items in (found, [*wished, good]):
        # What the API server takes of it is there then.
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        cluster.try_kubectl("create", "-n", namespace, "-f", str(file))

    there = {each["metadata"]["name"]: each for each in cluster.objects("llmd", namespace)}
    assert "good" in there
    soon(lambda: cluster.objects("pods", namespace, "quire.dev/deployment=good"), "the good one's pod")
    for name, written in there.items():
        _, reason, message = soon(
            lambda name=name: any(cluster.ready(name, namespace)) and cluster.ready(name, namespace),
            f"a word on {json.dumps(written)}",
        )
        if read(written).deployment is None:
            assert reason == "InvalidSpec"
            assert message
    assert operator.counted("quire_operator_reconciles_total") > 0
    lines = [json.loads(line) for line in operator.says.splitlines() if line.startswith("{")]
    assert not [line for line in lines if "error" in line]
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def resource(name: str, spec) -> dict:
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name},
        **({} if spec is None else {"spec": spec}),
    }
