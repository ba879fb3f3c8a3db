"""Which kinds this operator may watch, asked before kopf starts: kopf gives up for good where it is refused."""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from quire_api.errors import UserError
from quire_api.v1alpha1 import GROUP, KIND, PLURAL, VERSION
from quire_operator.kube import ApiError, Kube

log = logging.getLogger(__name__)


class Kind(NamedTuple):
    group: str
    version: str
    plural: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


KINDS: Mapping[str, Kind] = {
    KIND: Kind(GROUP, VERSION, PLURAL),
    "Deployment": Kind("apps", "v1", "deployments"),
    "NetworkPolicy": Kind("networking.k8s.io", "v1", "networkpolicies"),
    "PersistentVolumeClaim": Kind("", "v1", "persistentvolumeclaims"),
    "Pod": Kind("", "v1", "pods"),
    "PodDisruptionBudget": Kind("policy", "v1", "poddisruptionbudgets"),
    "Secret": Kind("", "v1", "secrets"),
    "Service": Kind("", "v1", "services"),
    "ServiceAccount": Kind("", "v1", "serviceaccounts"),
}
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
    for name, kind in KINDS.items():
        try:
            for namespace in namespaces or (None,):
                await kube.list(kind.api_version, name, namespace, limit=1)
            found[name] = kind
        except ApiError as error:
            if error.status != 403:
                raise
            advice = "Give it the role of this version's chart"
            if name not in OPTIONAL:
                raise MissingRight(f"{error.message}. {advice}, and it starts by itself.") from None
            log.warning("%s; deployments that need it are refused. %s, then restart it.", error.message, advice)
    return found
