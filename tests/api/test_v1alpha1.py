"""What a person may write, and what each mistake is answered with."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from quire_api.errors import UserError
from quire_api.v1alpha1 import from_object
from quire_api.v1alpha1_documents import InvalidResource, parse_documents, parse_manifest
from quire_api.v1alpha1_values import duration_seconds, is_fraction, quantity_value, share_of

SMALLEST = """
apiVersion: quire.dev/v1alpha1
kind: LLMDeployment
metadata:
  name: tiny
spec:
  model:
    source: file://models/tiny
"""


def resource(spec: dict | None = None, **metadata) -> dict:
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "tiny", **metadata},
        "spec": {"model": {"source": "file://m"}, **(spec or {})},
    }


def complaint(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_documents(text, "tiny.yaml")
    return str(caught.value)


def complaint_about(spec_yaml: str) -> str:
    return complaint(SMALLEST + "".join(f"  {line}\n" for line in spec_yaml.splitlines()))


def test_the_smallest_resource_has_every_default():
    (deployment,) = parse_documents(SMALLEST, "tiny.yaml")
    spec = deployment.spec
    assert deployment.metadata.namespace == "default"
    assert deployment.served_names == ["tiny"]
    assert (spec.replicas, spec.autoscaling, spec.routing.policy) == (1, None, "prefixCost")
    assert (spec.rollout.max_surge, spec.rollout.max_unavailable, spec.rollout.drain_timeout) == (1, 0, "30s")
    assert (spec.engine.device, spec.engine.kv_cache.block_size, spec.resources.gpus) == ("auto", 16, 0)


def test_a_resource_survives_the_way_to_plain_data_and_back():
    deployment = from_object(
        resource(
            {
                "autoscaling": {"maxReplicas": 4, "targets": {"ttft": "500ms"}},
                "resources": {"cpu": "500m", "memory": "2Gi"},
                "podTemplate": {"spec": {"tolerations": [{"key": "gpu", "value": None}]}},
            },
            labels={"team": "a"},
            managedFields=[{"manager": "kubectl"}],
        )
    )
    assert from_object(deployment.to_object()) == deployment
    assert deployment.to_object()["metadata"]["managedFields"] == [{"manager": "kubectl"}]


def test_null_counts_as_absent():
    deployment = from_object(resource({"replicas": None, "autoscaling": None, "engine": None}))
    assert deployment.spec.replicas == 1
    assert deployment.spec.engine.device == "auto"


def test_all_documents_of_a_file_are_read_and_foreign_kinds_are_named():
    manifest = parse_manifest(
        SMALLEST
        + "---\n"
        + SMALLEST.replace("name: tiny", "name: second")
        + "---\n# nothing here\n---\n"
        + "apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\nstringData: {alice: k1}\ndata: {bob: azI=}\n"
        + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: models}\n",
        "f.yaml",
    )
    assert [deployment.metadata.name for deployment in manifest.deployments] == ["tiny", "second"]
    assert manifest.secrets[0].values == {"alice": "k1", "bob": "k2"}
    assert manifest.ignored == ["Namespace models"]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("replicas: -1", "tiny.yaml:9: document 1, spec.replicas: is -1, but must be 0 or more"),
        (
            'replicas: "2"',
            'tiny.yaml:9: document 1, spec.replicas: is the text "2", but must be a whole number without quotes',
        ),
        ("replicas: 1.5", "spec.replicas: is the number 1.5, but must be a whole number"),
        ("replicas: true", "spec.replicas: is true, but must be a whole number"),
        ("engine: {device: gpu}", "spec.engine.device: is 'gpu', but must be 'auto', 'cpu' or 'cuda'"),
        ("engine: [cuda]", "spec.engine: is a list, but must be a mapping"),
        ("engine: {maxModelLength: 3}", "spec.engine.maxModelLength: unknown field; did you mean `maxModelLen`?"),
        ("engine: {max_model_len: 3}", "did you mean `maxModelLen`?"),
        ("drainTimeout: 3s", "spec.drainTimeout: unknown field; it belongs to spec.rollout.drainTimeout"),
        ("banana: 3", "spec.banana: unknown field; there is model, engine, resources, replicas"),
        ("engine: {kvCache: {memory: 0.9}}", 'for example "0.9" or 40Gi'),
        ("engine: {kvCache: {memory: 40GB}}", '"40GB" is not a fraction or a quantity'),
        ("engine: {kvCache: {blockSize: 17}}", "spec.engine.kvCache.blockSize: is 17, but must be 16, 32 or 64"),
        ("engine: {extraArgs: [--port=1]}", "spec.engine.extraArgs: must not set --host, --port"),
        ("engine: {extraArgs: [1]}", "spec.engine.extraArgs[0]: is the number 1, but must be text"),
        ("engine: {device: cuda}", "spec: engine.device cuda needs resources.gpus of 1 or more"),
        ("engine: {device: cpu}\nresources: {gpus: 1}", "engine.device cpu does not go with resources.gpus"),
        ("resources: {memory: 2 GB}", "spec.resources.memory: '2 GB' is not a quantity"),
        ("resources: {cpu: 0.5}", 'spec.resources.cpu: 0.5 needs quotes here ("0.5")'),
        ("rollout: {drainTimeout: 30}", "30 without quotes is a number; write a duration as text, for example 30s"),
        ("rollout: {drainTimeout: half an hour}", '"half an hour" is not a duration; write for example 30s'),
        ("rollout: {maxSurge: 0}", "spec.rollout: maxSurge and maxUnavailable must not both be 0"),
        ("rollout: {maxSurge: 0%}", "spec.rollout: maxSurge and maxUnavailable must not both be 0"),
        ("rollout: {maxSurge: -1}", "spec.rollout.maxSurge: -1 is below 0"),
        ("rollout: {maxSurge: half}", "'half' is not a number of replicas or a percentage"),
        ("autoscaling: {minReplicas: 1}", "spec.autoscaling.maxReplicas: is missing and has no default"),
        (
            "autoscaling: {minReplicas: 3, maxReplicas: 2}",
            "spec.autoscaling.minReplicas: 3 is above maxReplicas (2); lower it or raise maxReplicas",
        ),
        ("routing: {policy: leastload}", "spec.routing.policy: is 'leastload', but must be 'prefixCost', 'leastLoad'"),
        ("access: {apiKeysSecretRef: keys}", 'spec.access.apiKeysSecretRef: is the text "keys", but must be a mapping'),
        ("access: {limits: {concurrency: 0}}", "spec.access.limits.concurrency: is 0, but must be 1 or more"),
        ("model: {source: hf://a/b}", "the key 'model' stands twice"),
    ],
)
def test_a_mistake_is_answered_with_its_place_and_a_way_out(spec, sentence):
    assert sentence in complaint_about(spec)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("{source: Qwen/Qwen3}", '"Qwen/Qwen3" must begin with hf://, s3://, pvc://, oci:// or file://'),
        ("{source: file://}", '"file://" must begin with'),
        ("{sources: hf://a/b}", "spec.model.source: is missing and has no default; did you mean it where you wrote"),
        ("{source: file://m, revision: main}", "spec.model.revision: applies to hf:// sources only; remove it"),
        ("{source: file://m, servedNames: [a, a]}", "spec.model.servedNames: holds a name twice"),
        ("{source: file://m, servedNames: a}", 'spec.model.servedNames: is the text "a", but must be a list'),
        ("{source: file://m, servedName: a}", "spec.model.servedName: unknown field; did you mean `servedNames`?"),
    ],
)
def test_a_mistake_in_the_model_is_answered_too(model, sentence):
    assert sentence in complaint(
        f"apiVersion: quire.dev/v1alpha1\nkind: LLMDeployment\nmetadata: {{name: a}}\nspec: {{model: {model}}}"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "tiny.yaml: holds no LLMDeployment"),
        ("a: [", "tiny.yaml:1: is not valid YAML"),
        ("a: 1", "apiVersion: is missing; write apiVersion: quire.dev/v1alpha1"),
        ("apiVersion: v1", "kind: is missing; write kind: LLMDeployment"),
        ("- a", "is a list, not a resource"),
        ("just text", 'is the text "just text", not a resource'),
        ("a: &a [*a]", "is too deep or too large"),
        ("\x00", "is not valid YAML"),
        ('a: "b\\0c"', "tiny.yaml:1: holds the character U+0000"),
        ('- a\n- "\\uD800"', "tiny.yaml:2: holds the character U+D800"),
        (SMALLEST + "  replicas: 100000\n", "replicas: is 100000, but must be 1000 or less"),
        (SMALLEST + "  rollout: {drainTimeout: 999999999999h}\n", "longer than a year; write at most 8760h"),
        (SMALLEST + f"  resources: {{memory: {'9' * 400}Gi}}\n", "beyond all bounds"),
        (SMALLEST.replace("v1alpha1", "v1"), "apiVersion: is 'quire.dev/v1', but must be 'quire.dev/v1alpha1'"),
        (SMALLEST.replace("LLMDeployment", "LLMDeploy"), "kind: is 'LLMDeploy', but must be 'LLMDeployment'"),
        (SMALLEST.replace("tiny\n", "Tiny_1\n", 1), '"Tiny_1" must be at most 50 lowercase letters'),
        (SMALLEST.replace("tiny\n", "1\n", 1), "metadata.name: is the number 1, but must be text"),
        (SMALLEST + "---" + SMALLEST, "metadata.name: LLMDeployment tiny is already on line 2; rename one"),
        ("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {k: '!'}", "data.k: is not base64"),
    ],
)
def test_a_file_that_is_no_resource_says_what_it_is(text, sentence):
    assert sentence in complaint(text)


def test_every_problem_of_every_document_is_one_line():
    with pytest.raises(InvalidResource) as caught:
        parse_documents(SMALLEST + "  replicas: -1\n  foo: 1\n---" + SMALLEST + "  bar: 1\n", "f.yaml")
    assert len(caught.value.lines) == 3
    assert [line.split(":")[1] for line in caught.value.lines] == ["9", "10", "19"]


def test_an_alias_bomb_is_refused_quickly():
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{','.join(['*' + previous] * 9)}]\n"
        for previous, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "too deep or too large" in complaint(bomb)


def test_python_names_are_for_python_only():
    with pytest.raises(ValidationError):
        from_object(resource({"pod_template": {}}))


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("1m30s", 90), ("250ms", 0.25), ("1.5h", 5400), ("1h0m1s", 3601)]
)
def test_durations_add_up(text, seconds):
    assert duration_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "1m 30s", "-1s", "1d", "1s\n"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="is not a duration"):
        duration_seconds(text)


def test_quantities_and_shares():
    assert quantity_value("2Gi") == 2 * 2**30
    assert quantity_value("500m") == 0.5
    assert quantity_value(4) == 4
    assert share_of(4, "25%", round_up=True) == 1
    assert share_of(3, "50%", round_up=True) == 2
    assert share_of(3, "50%", round_up=False) == 1
    assert share_of(9, 2, round_up=True) == 2
    assert is_fraction("0.9")
    assert is_fraction("1.0")
    assert not is_fraction("40Gi")


@pytest.mark.parametrize("sample", sorted((Path(__file__).parents[2] / "manifests/samples").glob("*.yaml")), ids=str)
def test_the_samples_are_valid(sample):
    assert parse_documents(sample.read_text(), sample.name)
