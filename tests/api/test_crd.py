"""The generated definition obeys the API server's rules for structural schemas."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from quire_api import crd
from quire_api.v1alpha1 import from_object

ROOT = Path(__file__).parents[2]
DEFINITION = crd.custom_resource_definition()
VERSION = DEFINITION["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]
SCALARS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


def nodes(schema: dict, path: str = "") -> Iterator[tuple[str, dict]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


NODES = dict(nodes(SCHEMA))


def defaulted(value, schema: dict):
    """What the API server stores: defaults filled in wherever a parent exists."""
    if isinstance(value, dict):
        filled = dict(value)
        for name, child in schema.get("properties", {}).items():
            if name not in filled and "default" in child:
                filled[name] = child["default"]
            if name in filled:
                filled[name] = defaulted(filled[name], child)
        return filled
    return value


@pytest.mark.parametrize("path", NODES)
def test_a_node_is_structural(path):
    node = NODES[path]
    assert "$ref" not in node
    assert "allOf" not in node
    assert "oneOf" not in node
    if node.get("x-kubernetes-int-or-string"):
        assert "type" not in node
        assert node["anyOf"] == [{"type": "integer"}, {"type": "string"}]
    else:
        assert node["type"] in SCALARS
        assert "anyOf" not in node
    assert not ("properties" in node and "additionalProperties" in node)
    assert node.get("type") != "array" or "items" in node
    assert not node.get("uniqueItems")
    assert isinstance(node.get("exclusiveMinimum", False), bool)
    assert "nullable" not in node
    assert set(node.get("required", ())) <= set(node.get("properties", ()))


@pytest.mark.parametrize("path", [path for path, node in NODES.items() if "default" in node])
def test_a_default_is_valid_where_it_stands(path):
    node = NODES[path]
    default = node["default"]
    if node.get("x-kubernetes-int-or-string"):
        assert isinstance(default, int | str)
    else:
        assert isinstance(default, SCALARS[node["type"]])
    assert default in node.get("enum", [default])
    assert set(node.get("required", ())) <= set(defaulted(default, node) if isinstance(default, dict) else ())


@pytest.mark.parametrize("path", [path for path in NODES if path.startswith((".spec", ".status")) and path[-1] != "]"])
def test_every_field_explains_itself(path):
    assert len(NODES[path]["description"].split()) >= 2


def test_lists_say_how_they_merge():
    for path, node in NODES.items():
        if node.get("type") == "array":
            assert node["x-kubernetes-list-type"] in ("atomic", "set", "map"), path
            for key in node.get("x-kubernetes-list-map-keys", ()):
                assert key in node["items"]["required"], path


def test_what_rules_read_is_bounded():
    """The API server refuses rules whose estimated cost over unbounded text or lists is too high."""
    for path in (".spec.model.source", ".spec.engine.extraArgs[]"):
        assert NODES[path]["maxLength"] <= 1024
    assert NODES[".spec.engine.extraArgs"]["maxItems"] <= 64


def test_free_form_fields_keep_what_they_hold():
    for path in (".spec.podTemplate", ".spec.experimental"):
        assert NODES[path]["x-kubernetes-preserve-unknown-fields"] is True


def test_columns_and_subresources():
    assert [column["name"] for column in VERSION["additionalPrinterColumns"]] == [
        "Model",
        "Ready",
        "Replicas",
        "Reason",
        "URL",
        "Age",
    ]
    scale = VERSION["subresources"]["scale"]
    for path in scale.values():
        assert path in NODES
    assert VERSION["subresources"]["status"] == {}


def test_filling_in_defaults_gives_what_the_models_give():
    written = {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": "tiny"},
        "spec": {"model": {"source": "file://m"}, "autoscaling": {"maxReplicas": 2}},
    }
    stored = defaulted(written, SCHEMA)
    assert stored["spec"] == from_object(written).to_object()["spec"]
    assert from_object(stored) == from_object(written)


def test_each_rule_of_the_api_server_is_also_a_rule_of_the_models():
    """One case for each x-kubernetes-validations entry; a new rule needs a new case here."""
    base = {"apiVersion": "quire.dev/v1alpha1", "kind": "LLMDeployment", "metadata": {"name": "tiny"}}
    model = {"source": "hf://a/b"}
    cases = [
        {**base, "metadata": {"name": "x" * 51}, "spec": {"model": model}},
        {**base, "spec": {"model": {"source": "a/b"}}},
        {**base, "spec": {"model": {"source": "s3://a/b", "revision": "main"}}},
        {**base, "spec": {"model": {"source": "pvc://claim/model", "volume": {"size": "1Gi"}}}},
        {**base, "spec": {"model": model, "engine": {"extraArgs": ["--port", "1"]}}},
        {**base, "spec": {"model": model, "engine": {"device": "cuda"}}},
        {**base, "spec": {"model": model, "engine": {"device": "cpu"}, "resources": {"gpus": 1}}},
        {**base, "spec": {"model": model, "autoscaling": {"minReplicas": 3, "maxReplicas": 2}}},
        {**base, "spec": {"model": model, "rollout": {"maxSurge": "00%", "maxUnavailable": 0}}},
    ]
    assert len(cases) == sum(len(node.get("x-kubernetes-validations", ())) for node in NODES.values())
    for case in cases:
        with pytest.raises(ValidationError):
            from_object(case)


def test_what_is_committed_is_current(tmp_path, capsys):
    assert crd.main(["--check", str(ROOT / "crds")]) == 0
    assert crd.main(["--write", str(tmp_path / "crds")]) == 0
    written = yaml.safe_load((tmp_path / "crds" / "llmdeployments.yaml").read_text())
    assert written == DEFINITION
    (tmp_path / "docs" / "llmdeployment.md").write_text("old")
    assert crd.main(["--check", str(tmp_path / "crds")]) == 1
    assert "llmdeployment.md is stale; run `make crds`" in capsys.readouterr().err
