"""Names of deployments for the shell's completion: quick, and silent about whatever is in the way."""

import contextlib
from pathlib import Path

import typer

from quire.cluster.api import deployments_path
from quire.cluster.choice import Where
from quire.up.state import read_status
from quire_api.errors import UserError

TIMEOUT_S = 2.0


def complete_deployment(context: typer.Context, incomplete: str) -> list[str]:
    """Those that begin with what is typed, of the world that the flags typed so far mean."""
    given = context.params
    kubeconfig, state_dir = given.get("kubeconfig"), given.get("state_dir")
    where = Where(
        state_dir=Path(state_dir) if state_dir else None,
        namespace=given.get("namespace") or "",
        is_everywhere=bool(given.get("all_namespaces")),
        kubeconfig=Path(kubeconfig) if kubeconfig else None,
        context=given.get("context") or "",
    )
    with contextlib.suppress(UserError, OSError, ValueError, KeyError, TypeError):
        api = where.cluster(TIMEOUT_S)
        if api is None:
            items = read_status(where.state_dir)[0]["items"]
        else:
            items = api.items(deployments_path(where.namespace_of(api)))
        return sorted(name for item in items if (name := item["metadata"]["name"]).startswith(incomplete))
    return []
