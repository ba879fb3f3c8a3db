"""What others have added to our objects that makes pods or their selection another thing than the spec says. Pure.

Server-side apply restores the fields that we set, whoever has taken them, and leaves what we do not set. Beside those
stands what changes what runs: containers, variables, mounts and volumes, fields of the pod, labels in our selectors.
`spec.podTemplate` is the place to ask for such things. Annotations, labels and whatever else stays with who wrote it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from quire_operator.merge import Manifest

DEFAULTED_IN_POD = frozenset(
    {
        "dnsPolicy",
        "restartPolicy",
        "schedulerName",
        "securityContext",
        "serviceAccount",
        "terminationGracePeriodSeconds",
    }
)
"""The API server adds these by itself."""
DEFAULTED_IN_CONTAINER = frozenset(
    {"imagePullPolicy", "resources", "terminationMessagePath", "terminationMessagePolicy"}
)
NAMED = {"containers": "name", "initContainers": "name", "volumes": "name", "env": "name", "volumeMounts": "mountPath"}
"""Lists of which each element has an owner of its own, and by what they merge."""
SELECTORS = {
    "Service": ("spec", "selector"),
    "PodDisruptionBudget": ("spec", "selector", "matchLabels"),
    "NetworkPolicy": ("spec", "podSelector", "matchLabels"),
}


def excess(live: Manifest, wanted: Manifest) -> Manifest | None:
    """A strategic merge patch that takes the additions away; None where there are none."""
    if wanted["kind"] == "Deployment":
        way: tuple[str, ...] = ("spec", "template", "spec")
        found = _in_pod(_at(live, way), _at(wanted, way))
    elif wanted["kind"] in SELECTORS:
        way = SELECTORS[wanted["kind"]]
        found = dict.fromkeys(_at(live, way).keys() - _at(wanted, way).keys())
    else:
        return None
    if not found:
        return None
    for step in reversed(way):
        found = {step: found}
    return found


def _in_pod(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> Manifest:
    found: Manifest = dict.fromkeys(live.keys() - wanted.keys() - DEFAULTED_IN_POD)
    for field in ("containers", "initContainers"):
        elements = _strangers(live, wanted, field)
        ours = {container["name"]: container for container in wanted.get(field) or ()}
        for container in live.get(field) or ():
            if container["name"] in ours and (change := _in_container(container, ours[container["name"]])):
                elements.append({"name": container["name"], **change})
        if elements and field in wanted:
            found[field] = elements
    if "volumes" in wanted and (elements := _strangers(live, wanted, "volumes")):
        found["volumes"] = elements
    return found


def _in_container(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> Manifest:
    found: Manifest = dict.fromkeys(live.keys() - wanted.keys() - DEFAULTED_IN_CONTAINER)
    for field in ("env", "volumeMounts"):
        if field in wanted and (elements := _strangers(live, wanted, field)):
            found[field] = elements
    return found


def _strangers(live: Mapping[str, Any], wanted: Mapping[str, Any], field: str) -> list[Manifest]:
    key = NAMED[field]
    ours: Sequence[str] = [element.get(key) for element in wanted.get(field) or ()]
    return [{key: element[key], "$patch": "delete"} for element in live.get(field) or () if element[key] not in ours]


def _at(manifest: Manifest, way: Sequence[str]) -> Mapping[str, Any]:
    place: Any = manifest
    for step in way:
        place = place.get(step) or {}
    return place  # type: ignore[no-any-return]
