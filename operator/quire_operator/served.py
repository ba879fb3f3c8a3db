"""What is served of a resource: its spec or, where that is not understood, the last one that was."""

import base64

from pydantic import ValidationError

from quire_api.v1alpha1 import LLMDeployment, LLMDeploymentStatus, from_object
from quire_operator.build import internal_name
from quire_operator.merge import Manifest
from quire_operator.record import last_understood
from quire_operator.resource import Resource
from quire_operator.store import Store, owner_uid


def served_by(store: Store, resource: Resource) -> LLMDeployment | None:
    """With the status that was written last; None where no spec of it was ever understood."""
    raw = store.raw(resource.key)
    if resource.deployment is not None or raw is None:
        return resource.deployment
    secret = store.child(resource.key, "Secret", internal_name(resource.key.name))
    is_own = secret is not None and owner_uid(secret) == raw["metadata"].get("uid")
    served = last_understood(raw, decoded(secret)) if secret is not None and is_own else None
    return served.model_copy(update={"status": resource.previous or LLMDeploymentStatus()}) if served else None


def shell_of(raw: Manifest) -> LLMDeployment | None:
    """The deployment without anything of its spec, for the objects that follow from its name alone."""
    wish = {name: value for name, value in raw.items() if name not in ("spec", "status")}
    try:
        return from_object({**wish, "spec": {"model": {"source": "file:///unread"}}})
    except ValidationError:
        return None


def decoded(secret: Manifest) -> dict[str, str]:
    """Entries of a Secret as text."""
    data = secret.get("data") or {}
    return {name: base64.b64decode(value).decode(errors="replace") for name, value in data.items()}
