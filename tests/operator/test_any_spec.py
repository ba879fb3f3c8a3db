"""Whatever a resource holds, it is either served or told what is wrong; nothing in between fails."""

import contextlib
import copy
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from quire_api.wire import ModelShape
from quire_operator.build import revision_deployment, standing_objects, weights_claim
from quire_operator.build_pod import Settings
from quire_operator.decide import decide
from quire_operator.fits import Memory, fit_of
from quire_operator.merge import BadTemplate
from quire_operator.resource import read
from quire_operator.revision import revision_of
from quire_operator.world import Key, Observed

SETTINGS = Settings(engine_image="e", agent_image="a")
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=6,
)
flags = st.lists(
    st.sampled_from(
        [
            *("--max-model-len", "--max-model-len=0", "--max-model-len=²", f"--block-size={'9' * 400}", "--block-size"),
            *("--gpu-memory-utilization=nan", "--gpu-memory-utilization", "--dtype=float32", "--dtype", "0", "1e400"),
        ]
    ),
    max_size=4,
)
sources = st.sampled_from(
    ["hf://a/b", "s3://b/p", "oci://r/a:1", "pvc://c", "pvc://c/p", "pvc:///", "file:///m", "hf://", "x", ""]
)
specs = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(
            {"source": sources},
            optional={
                "revision": st.sampled_from(["main", ""]),
                "volume": st.fixed_dictionaries(
                    {"size": st.sampled_from([1, "40Gi", "-1"])}, optional={"whenDeleted": st.just("Retain")}
                ),
                "auth": st.just({"secretRef": {"name": "s"}}),
                "servedNames": st.lists(st.sampled_from(["a", "b/c", ""]), max_size=2),
            },
        )
    },
    optional={
        "engine": st.fixed_dictionaries(
            {},
            optional={
                "device": st.sampled_from(["auto", "cpu", "cuda"]),
                "maxModelLen": st.integers(-1, 2**40),
                "extraArgs": flags,
                "kvCache": st.sampled_from([{}, {"memory": "0.5"}, {"memory": "1Gi"}, {"blockSize": 3}]),
            },
        ),
        "resources": st.fixed_dictionaries(
            {},
            optional={
                "gpus": st.integers(-1, 3),
                "memory": st.sampled_from(["1Gi", 0, "x"]),
                "cpu": st.sampled_from(["10m", 0, 3]),
            },
        ),
        "replicas": st.integers(-1, 1001),
        "podTemplate": junk,
        "rollout": st.sampled_from([{}, {"drainTimeout": "0s"}, {"drainTimeout": "never"}, {"maxSurge": "0%"}]),
        "experimental": junk,
    },
)
shapes = st.builds(
    ModelShape,
    architecture=st.text(max_size=3),
    weight_bytes=st.integers(0, 2**50),
    value_bytes=st.integers(0, 4),
    kv_values_per_token=st.integers(0, 2**30),
    max_positions=st.integers(0, 2**31),
)
memories = st.one_of(st.none(), st.builds(Memory, st.floats(0, 2**50), st.booleans(), st.just("it has")))


def resource(spec, name: str = "tiny"):
    metadata = {"name": name, "namespace": "models", "uid": "u", "generation": 1}
    return {"apiVersion": "quire.dev/v1alpha1", "kind": "LLMDeployment", "metadata": metadata, "spec": spec}


@settings(max_examples=400, deadline=None)
@given(spec=specs, shape=shapes, memory=memories)
def test_a_spec_becomes_objects_or_problems_with_their_fields(spec, shape, memory):
    found = read(resource(spec))
    if found.deployment is None:
        assert found.message
        assert all(problem.path.startswith("spec") for problem in found.problems)
        return
    deployment, revision = found.deployment, revision_of(found.deployment)
    decision = decide([deployment], Observed(gateways=1), 1000.0)
    assert {c.type for c in decision.statuses[Key.of(deployment)].conditions} >= {"Ready", "Fits"}
    fit_of(deployment, shape, memory)
    objects = standing_objects(deployment, 2, "key", SETTINGS)
    with contextlib.suppress(BadTemplate):
        objects.append(revision_deployment(deployment, revision, 1, SETTINGS))
    objects += [claim] if (claim := weights_claim(deployment)) else []
    assert all(len(item["metadata"]["name"]) <= 63 for item in objects)
    json.dumps(objects)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_an_object_with_anything_anywhere_is_read_without_raising(data):
    body = copy.deepcopy(resource({"model": {"source": "hf://a/b"}, "replicas": 1}))
    paths = [("spec",), ("metadata",), ("spec", "model"), ("spec", "model", "source"), ("status",), ("spec", "engine")]
    for *way, last in data.draw(st.lists(st.sampled_from(paths), max_size=3, unique=True)):
        place = body
        for step in way:
            place = place.get(step) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[last] = data.draw(junk)
    found = read(body)
    assert found.deployment is not None or found.message
