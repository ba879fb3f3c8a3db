"""Which processes a deployment becomes: the command lines of engines and gateway, and their environment."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from quire.up.credentials import source_environment
from quire_api.v1alpha1 import LLMDeployment
from quire_api.v1alpha1_values import quantity_value
from quire_operator.serving import INTERNAL_KEY, TERMINATION_LOG, serve_flags

SHUTDOWN_S = 10.0
"""What an engine may take after SIGTERM; it has been drained before, unless its drain timed out."""


@dataclass(frozen=True)
class Programs:
    """How engines and gateways are started; tests put their own in."""

    serve: tuple[str, ...] = (sys.executable, "-m", "quire", "serve")
    gateway: tuple[str, ...] = (sys.executable, "-m", "quire_gateway")


def model_location(deployment: LLMDeployment, folder: Path) -> str:
    """What `quire serve` is told to load: file:// becomes a path, relative ones from the resource file's folder."""
    source = deployment.spec.model.source
    if source.startswith("file://"):
        return str((folder / source.removeprefix("file://")).resolve())
    return source


def serve_command(programs: Programs, deployment: LLMDeployment, location: str, port: int) -> list[str]:
    """Command line of one engine replica on a loopback port."""
    return [*programs.serve, *serve_flags(deployment, location, "127.0.0.1", port, SHUTDOWN_S)]


def serve_environment(
    deployment: LLMDeployment, internal_key: str, gpus: list[str], termination_log: Path, secret: Mapping[str, str]
) -> dict[str, str]:
    """Environment of one engine replica: its key, its GPUs, its share of the cores, the source's credentials."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QUIRE_")}
    environment[INTERNAL_KEY] = internal_key
    environment[TERMINATION_LOG] = str(termination_log)
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    environment |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "400"}
    if deployment.spec.resources.cpu is not None:
        environment["OMP_NUM_THREADS"] = str(max(ceil(quantity_value(deployment.spec.resources.cpu)), 1))
    elif not gpus:
        law = deployment.spec.autoscaling
        share = (os.cpu_count() or 1) // max(law.max_replicas if law else deployment.spec.replicas, 1)
        environment.setdefault("OMP_NUM_THREADS", str(max(share, 1)))
    return environment | source_environment(secret, termination_log.with_suffix(".registry"))


def gateway_command(programs: Programs, table: Path, host: str, port: int, drain_s: float, workers: int) -> list[str]:
    """Command line of the gateway."""
    return [
        *programs.gateway,
        *("--routing-table", str(table), "--host", host, "--port", str(port)),
        *("--shutdown-timeout-s", f"{max(drain_s, 1.0):g}"),
        *(("--workers", str(workers)) if workers > 1 else ()),
    ]


def gateway_environment(internal_key: str) -> dict[str, str]:
    """Environment of the gateway; without a key its inner pages are open, as suits the loopback."""
    environment = {name: value for name, value in os.environ.items() if name != INTERNAL_KEY}
    if internal_key:
        environment[INTERNAL_KEY] = internal_key
    environment["CUDA_VISIBLE_DEVICES"] = ""
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return environment
