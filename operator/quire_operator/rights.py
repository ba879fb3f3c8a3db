"""Which kinds this operator may watch, asked before kopf starts: kopf gives up for good where it is refused."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from quire_api.errors import UserError
from quire_api.v1alpha1 import KIND
from quire_operator.kube import KINDS, ApiError, Kube

log = logging.getLogger(__name__)


class Kind(NamedTuple):
    group: str
    version: str
    plural: str


_WATCHED = frozenset(
    {
        *(KIND, "Deployment", "NetworkPolicy", "PersistentVolumeClaim", "Pod", "PodDisruptionBudget"),
        *("Secret", "Service", "ServiceAccount"),
    }
)
OPTIONAL = frozenset({"PersistentVolumeClaim"})
"""Needed by deployments with `model.volume` alone; roles older than that field do not hold it."""


class MissingRight(UserError):
    """The operator's role lacks what no deployment can do without."""


async def watchable(kube: Kube, namespaces: Sequence[str]) -> dict[str, Kind]:
    """The kinds to watch in these namespaces, or in all if there are none.

    Raises:
        MissingRight
        ApiUnavailable: the API server does not answer.
    """
    found = {}
    for (api_version, name), plural in KINDS.items():
        if name not in _WATCHED:
            continue
        try:
            for namespace in namespaces or (None,):
                await kube.list(api_version, name, namespace, limit=1)
            group, _, version = api_version.rpartition("/")
            found[name] = Kind(group, version, plural)
        except ApiError as error:
            if error.status != 403:
                raise
            advice = "Give it the role of this version's chart"
            if name not in OPTIONAL:
                raise MissingRight(f"{error.message}. {advice}, and it starts by itself.") from None
            log.warning("%s; deployments that need it are refused. %s, then restart it.", error.message, advice)
    return found
