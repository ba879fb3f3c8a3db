"""The field reference of LLMDeployment as Markdown, from the very schema that the API server gets."""

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_INTRODUCTION = """# LLMDeployment

`quire.dev/v1alpha1`, plural `llmdeployments`, short `llmd`. Written by `make crds` from `api/quire_api/v1alpha1.py`.

The smallest one:

```yaml
apiVersion: quire.dev/v1alpha1
kind: LLMDeployment
metadata:
  name: quire-tiny
spec:
  model:
    source: file://../../models/quire-tiny
```

Durations are text such as `30s`, `1m30s` or `250ms`. Quantities are those of Kubernetes: `16Gi`, `500m`.
"""


def markdown(schema: Schema) -> str:
    """One table for the spec, one for the status, and the rules between fields."""
    lines = [_INTRODUCTION]
    for part in ("spec", "status"):
        lines += [f"## {part}", "", "| field | type | default | meaning |", "|---|---|---|---|"]
        lines += _rows(schema["properties"][part], part)
        lines.append("")
    lines += ["## Rules between fields", ""]
    lines += [f"- `{path}`: {message}" if path else f"- {message}" for path, message in _rules(schema, "")]
    return "\n".join(lines) + "\n"


def _rows(node: Schema, path: str) -> Iterator[str]:
    required = node.get("required", ())
    for name, child in node.get("properties", {}).items():
        here = f"{path}.{name}"
        default = child.get("default")
        shown = (
            "required"
            if name in required
            else ""
            if default in (None, "") or isinstance(default, dict | list)
            else f"`{default}`"
        )
        meaning = child.get("description", "").replace("|", "\\|")
        yield f"| `{here}` | {_type(child)} | {shown} | {meaning} |"
        yield from _rows(child, here)
        if "properties" in child.get("items", {}):
            yield from _rows(child["items"], f"{here}[]")


def _type(node: Schema) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if node["type"] == "array":
        return f"list of {_type(node['items'])}"
    return str(node["type"])


def _rules(node: Schema, path: str) -> Iterator[tuple[str, str]]:
    for rule in node.get("x-kubernetes-validations", ()):
        yield path, rule["message"]
    for name, child in node.get("properties", {}).items():
        yield from _rules(child, f"{path}.{name}".removeprefix("."))
