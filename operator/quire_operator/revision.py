"""Which part of the wish needs new replicas when it changes."""

import hashlib
import json

from quire_api.v1alpha1 import LLMDeployment

REVISION_LENGTH = 8


def revision_of(deployment: LLMDeployment) -> str:
    """Short hash of everything a replica is built from: model, names, engine, resources, pod template, experimental.

    Number of replicas, scaling, routing, rollout and access can change under running replicas and stand outside; so
    does everything of a volume but that there is one.
    """
    return _mark(deployment, is_whole=True)


def spec_marks(deployment: LLMDeployment) -> tuple[str, str]:
    """By which a spec is known again: with its defaults, and as it is written.

    Two versions of the operator may differ in defaults, and two files in what they write out: either is the same spec.
    """
    return revision_of(deployment), _mark(deployment, is_whole=False)


def _mark(deployment: LLMDeployment, *, is_whole: bool) -> str:
    spec = deployment.spec.model_dump(by_alias=True, exclude_none=True, exclude_unset=not is_whole)
    built_from = {field: spec.get(field) for field in ("model", "engine", "resources", "podTemplate", "experimental")}
    kept = {"volume": True} if "volume" in spec["model"] else {}
    built_from["model"] = {**spec["model"], **kept, "servedNames": deployment.served_names}
    text = json.dumps(built_from, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:REVISION_LENGTH]
