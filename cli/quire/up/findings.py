"""What keeps a deployment from starting on this machine, found before any process runs."""

from collections.abc import Iterable

from quire.up.gpus import lacking
from quire_api.errors import UserError
from quire_api.v1alpha1 import LLMDeployment
from quire_operator.serving import serve_flags
from quire_operator.world import Finding, Key


def findings(deployments: Iterable[LLMDeployment], gpus: int) -> dict[Key, Finding]:
    """What of each deployment can never work here. gpus: how many this machine has."""
    found = {}
    for deployment in deployments:
        finding = _of_flags(deployment) or _of_gpus(deployment, gpus)
        if finding is not None:
            found[Key.of(deployment)] = finding
    return found


def _of_flags(deployment: LLMDeployment) -> Finding | None:
    if not deployment.spec.engine.extra_args:
        return None
    from quire.serve import check_arguments

    try:
        check_arguments(serve_flags(deployment, "model", "127.0.0.1", 0, 0.0))
    except UserError as error:
        return Finding("InvalidSpec", f"spec.engine.extraArgs: {error}")
    return None


def _of_gpus(deployment: LLMDeployment, gpus: int) -> Finding | None:
    wanted = deployment.spec.resources.gpus
    if wanted <= gpus:
        return None
    return Finding("GpuUnavailable", f"a replica needs {lacking(wanted, gpus, gpus)}; lower spec.resources.gpus")
