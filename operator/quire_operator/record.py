"""The last spec that was understood, so that an edit or an upgrade after which it no longer is takes nothing away.

It stands in the deployment's internal Secret: that one exists at zero replicas too, is written before anything else,
and needs no further right. A spec that is in conflict over its names is not recorded, because nothing is made of it.
"""

import json
from collections.abc import Mapping

from pydantic import ValidationError

from quire_api.v1alpha1 import MAX_REPLICAS, LLMDeployment, from_object
from quire_operator.merge import Manifest

ENTRY = "spec"
LONGEST = 512 * 1024
"""Bytes; the Secret may hold 1 MiB. A longer spec (nearly all of it podTemplate) is served, but not recorded."""


def record_of(deployment: LLMDeployment) -> dict[str, str]:
    """Entries of the Secret; none for a spec that is too long."""
    # As written, without defaults: those of another version are no difference worth a write to every Secret.
    spec = deployment.spec.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
    text = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    return {ENTRY: text} if len(text.encode()) <= LONGEST else {}


def last_understood(raw: Manifest, entries: Mapping[str, str]) -> LLMDeployment | None:
    """The deployment as it was when its spec was understood last, with the number of replicas that is asked for now.

    Scaling does not need the rest of the spec, and must not end while that is being mended.
    """
    try:
        spec = json.loads(entries.get(ENTRY, ""))
    except (ValueError, RecursionError):
        return None
    if not isinstance(spec, dict):
        return None
    wanted = raw.get("spec", {}).get("replicas") if isinstance(raw.get("spec"), Mapping) else None
    if isinstance(wanted, int) and not isinstance(wanted, bool) and 0 <= wanted <= MAX_REPLICAS:
        spec["replicas"] = wanted
    wish = {name: value for name, value in raw.items() if name != "status"}
    try:
        return from_object({**wish, "spec": spec})
    except (ValidationError, RecursionError):
        return None
