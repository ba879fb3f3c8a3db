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
    spec = deployment.spec.model_dump(by_alias=True, exclude_none=True)
    built_from = {field: spec.get(field) for field in ("model", "engine", "resources", "podTemplate", "experimental")}
    kept = {"volume": True} if "volume" in spec["model"] else {}
    built_from["model"] = {**spec["model"], **kept, "servedNames": deployment.served_names}
    text = json.dumps(built_from, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:REVISION_LENGTH]
