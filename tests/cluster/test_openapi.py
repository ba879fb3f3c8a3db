"""Our table of merge keys is the API server's own."""

import json
from collections.abc import Iterator

from quire_operator.merge import MERGE_KEYS, MERGED_SETS, REPLACED_WHOLE


def merges(
    definitions: dict, name: str, path: str, seen: tuple[str, ...] = ()
) -> Iterator[tuple[str, str | None, str]]:
    """Every list below `name` that merges: its path, its key, its strategy."""
    for field, schema in definitions[name].get("properties", {}).items():
        here = f"{path}.{field}".removeprefix(".")
        if strategy := schema.get("x-kubernetes-patch-strategy"):
            yield here, schema.get("x-kubernetes-patch-merge-key"), strategy
        target = schema.get("$ref") or schema.get("items", {}).get("$ref")
        below = target.rsplit("/", 1)[-1] if target else ""
        if below and below not in seen:
            yield from merges(definitions, below, here, (*seen, below))


def test_merge_keys_are_those_of_the_api(cluster):
    definitions = json.loads(cluster.kubectl("get", "--raw", "/openapi/v2"))["definitions"]
    found = list(merges(definitions, "io.k8s.api.core.v1.PodTemplateSpec", ""))
    assert {path: key for path, key, _ in found if key} == MERGE_KEYS
    assert {path for path, _, strategy in found if "retainKeys" in strategy} == REPLACED_WHOLE
    assert {path for path, key, _ in found if not key} == MERGED_SETS
