"""Writes the CustomResourceDefinition from the models: a structural OpenAPI v3 schema as the API server demands it.

    python -m quire_api.crd --write crds     writes crds/llmdeployments.yaml and docs/llmdeployment.md beside it
    python -m quire_api.crd --check crds     exits 1 if either is stale

null is no value here (no `nullable`): the API server prunes nulls before it fills in defaults, as `from_object` does.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from quire_api import v1alpha1_reference
from quire_api.v1alpha1 import GROUP, KIND, PLURAL, SHORT_NAME, VERSION, LLMDeployment

Schema = dict[str, Any]

_KEPT = (
    "description",
    "type",
    "format",
    "enum",
    "default",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "pattern",
)


def structural_schema() -> Schema:
    """Schema of LLMDeployment: no references, a type on every node, defaults filled down to the leaves."""
    raw = LLMDeployment.model_json_schema(by_alias=True)
    schema = _structural(raw, raw.get("$defs", {}))
    _default_whole_objects(schema, LLMDeployment)
    schema["properties"]["apiVersion"] = {"description": "Version of the schema.", "type": "string"}
    schema["properties"]["kind"] = {"description": "Kind of the resource.", "type": "string"}
    schema["properties"]["metadata"] = {"type": "object"}
    schema["properties"]["status"].pop("default", None)
    schema["required"] = ["spec"]
    return schema


def custom_resource_definition() -> Schema:
    """The whole manifest, as plain data."""
    ready = '.status.conditions[?(@.type=="Ready")]'
    columns = [
        ("Model", "string", ".spec.model.source", "Where the weights come from"),
        ("Ready", "string", f"{ready}.status", "Whether the endpoint serves what the spec asks for"),
        ("Replicas", "integer", ".status.replicas", "Replicas that exist"),
        ("Reason", "string", f"{ready}.reason", "Why it is ready or not"),
        ("URL", "string", ".status.url", "OpenAI-compatible endpoint"),
        ("Age", "date", ".metadata.creationTimestamp", "Time since creation"),
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": [SHORT_NAME],
                "categories": ["quire"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "description": description}
                        for name, kind, path, description in columns
                    ],
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "schema": {"openAPIV3Schema": structural_schema()},
                }
            ],
        },
    }


def _structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """One node of pydantic's JSON schema as a structural one."""
    node = _resolved(node, definitions)
    out: Schema = {key: node[key] for key in _KEPT if key in node and not (key == "default" and node[key] is None)}
    if "description" in out:
        out["description"] = " ".join(out["description"].split())
    if "const" in node:
        out["enum"] = [node["const"]]
    if node.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "items" in node:
        out["items"] = _structural(node["items"], definitions)
    if "properties" in node:
        out["properties"] = {name: _structural(child, definitions) for name, child in node["properties"].items()}
        if node.get("required"):
            out["required"] = list(node["required"])
    elif isinstance(node.get("additionalProperties"), dict) and "x-kubernetes-preserve-unknown-fields" not in node:
        out["additionalProperties"] = _structural(node["additionalProperties"], definitions)
    out.update((key, value) for key, value in node.items() if key.startswith("x-kubernetes-"))
    return out


def _resolved(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """The node, its reference followed and "or null" dropped; what stands beside a reference wins over its target."""
    while True:
        beside = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
        if "$ref" in node:
            node = {**definitions[node["$ref"].rsplit("/", 1)[-1]], **beside}
            continue
        choices = [choice for choice in node.get("anyOf", ()) if choice.get("type") != "null"]
        if len(choices) == 1:
            node = {**choices[0], **beside}
            continue
        return node


def _default_whole_objects(schema: Schema, model: type[BaseModel]) -> None:
    """A default for every nested object that may be absent, written out to its leaves.

    The API server judges the rules of a default before it fills in what is inside.
    """
    for name, info in model.model_fields.items():
        child = schema["properties"][info.alias or name]
        for candidate in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel) and "properties" in child:
                _default_whole_objects(child, candidate)
        made = info.get_default(call_default_factory=True)
        if made is not PydanticUndefined and isinstance(made, BaseModel):
            inside = child["properties"].items()
            child["default"] = {key: value["default"] for key, value in inside if "default" in value}
        elif made == [] and info.default_factory is not None:
            child["default"] = []


class _PlainDumper(yaml.SafeDumper):
    """Writes equal parts out each time, where YAML would use anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _files(folder: Path) -> dict[Path, str]:
    definition = custom_resource_definition()
    text = yaml.dump(definition, Dumper=_PlainDumper, sort_keys=False, width=120, allow_unicode=True)
    header = "# Written by `make crds` from api/quire_api/v1alpha1.py; change that instead.\n"
    reference = v1alpha1_reference.markdown(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    return {folder / f"{PLURAL}.yaml": header + text, folder.parent / "docs" / "llmdeployment.md": reference}


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m quire_api.crd", description="Write or check the generated files.")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--write", metavar="FOLDER", type=Path, help="write the definition here, the reference beside it")
    task.add_argument("--check", metavar="FOLDER", type=Path, help="exit 1 if what is there is stale")
    options = parser.parse_args(argv)
    if options.write:
        for path, text in _files(options.write.resolve()).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return 0
    stale = [path for path, text in _files(options.check.resolve()).items() if not _has(path, text)]
    for path in stale:
        print(f"{path.name} is stale; run `make crds` and commit the result", file=sys.stderr)
    return 1 if stale else 0


def _has(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main())
