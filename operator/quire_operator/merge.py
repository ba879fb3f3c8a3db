"""Strategic merge of a pod template, as `kubectl patch` does it: lists with a merge key merge by it, others go whole.

null removes a field, `$patch: delete` a list's element, `$patch: replace` takes a mapping as written. Fields that this
file does not know are kept.
"""

from collections.abc import Mapping
from typing import Any

Manifest = dict[str, Any]


def place_of(manifest: Manifest) -> tuple[str, str]:
    """Namespace (empty for what is in none) and name."""
    metadata = manifest["metadata"]
    return str(metadata.get("namespace", "")), str(metadata["name"])


MERGE_KEYS = {
    "metadata.ownerReferences": "uid",
    "spec.containers": "name",
    "spec.ephemeralContainers": "name",
    "spec.initContainers": "name",
    "spec.hostAliases": "ip",
    "spec.imagePullSecrets": "name",
    "spec.resourceClaims": "name",
    "spec.schedulingGates": "name",
    "spec.topologySpreadConstraints": "topologyKey",
    "spec.volumes": "name",
    "spec.volumes.ephemeral.volumeClaimTemplate.metadata.ownerReferences": "uid",
    **{
        f"spec.{containers}.{field}": key
        for containers in ("containers", "ephemeralContainers", "initContainers")
        for field, key in (
            ("env", "name"),
            ("ports", "containerPort"),
            ("volumeDevices", "devicePath"),
            ("volumeMounts", "mountPath"),
        )
    },
}
"""Where lists of a PodTemplateSpec merge, and by which field: `x-kubernetes-patch-merge-key` of the API's OpenAPI."""

REPLACED_WHOLE = frozenset({"spec.volumes", "spec.resourceClaims"})
"""Lists whose elements keep only the fields of the patch (patch strategy retainKeys): a volume has one source."""

MERGED_SETS = frozenset({"metadata.finalizers", "spec.volumes.ephemeral.volumeClaimTemplate.metadata.finalizers"})


class BadTemplate(ValueError):
    """The template has another shape than a pod template; the message begins with the field's path."""


def merge_template(base: Mapping[str, Any], patch: Mapping[str, Any]) -> Manifest:
    """`patch` over `base`; neither is changed.

    Raises:
        BadTemplate
    """
    return _mapping(base, patch, "")


def _mapping(base: Mapping[str, Any], patch: Mapping[str, Any], path: str) -> Manifest:
    directive = patch.get("$patch")
    wanted = {key: value for key, value in patch.items() if key not in ("$patch", "$retainKeys")}
    if directive == "replace":
        return wanted
    if directive not in (None, "merge"):
        raise BadTemplate(f"{path}: $patch must be replace or delete, not {directive!r}")
    merged = dict(base)
    for key, value in wanted.items():
        here = f"{path}.{key}".removeprefix(".")
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _value(merged.get(key), value, here)
    return merged


def _value(base: Any, value: Any, path: str) -> Any:
    if (isinstance(base, list) or path in MERGE_KEYS) and not isinstance(value, list):
        raise BadTemplate(f"{path}: must be a list")
    if isinstance(base, Mapping) and not isinstance(value, Mapping):
        raise BadTemplate(f"{path}: must be a mapping")
    if isinstance(value, Mapping):
        return _mapping(base if isinstance(base, Mapping) else {}, value, path)
    if isinstance(value, list):
        if path in MERGE_KEYS:
            return _keyed_list(base or [], value, path)
        if path in MERGED_SETS:
            return [*(base or []), *(item for item in value if item not in (base or []))]
    return value


def _keyed_list(base: list[Any], patch: list[Any], path: str) -> list[Any]:
    key = MERGE_KEYS[path]
    merged = list(base)
    for index, item in enumerate(patch):
        if not isinstance(item, Mapping):
            raise BadTemplate(f"{path}[{index}]: must be a mapping")
        if item.get("$patch") == "replace" and key not in item:
            merged = [other for other in patch if isinstance(other, Mapping) and key in other]
            break
        if item.get(key) is None:
            raise BadTemplate(f"{path}[{index}]: {key} is missing")
        place = next((i for i, known in enumerate(merged) if known.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            merged = [known for known in merged if known.get(key) != item[key]]
        elif place is None:
            merged.append(_mapping({}, item, path))
        elif path in REPLACED_WHOLE:
            merged[place] = _mapping({name: merged[place].get(name) for name in item}, item, path)
        else:
            merged[place] = _mapping(merged[place], item, path)
    return merged
