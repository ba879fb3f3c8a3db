"""How long an engine may take to start, by the size of what it loads. Pure.

    allowance = 5 min + weights / 50 MB/s, at least 10 min

50 MB/s is a slow disk or a shared volume; the fixed part is for imports, kernels and the first step. Weights whose size
nobody has told yet are taken to be as large as the memory that the replica asks for.
"""

import re
from collections.abc import Mapping
from math import ceil

from quire_api.v1alpha1 import LLMDeploymentSpec
from quire_api.v1alpha1_values import duration_seconds, quantity_value

START_TIMEOUT = "quire.dev/start-timeout-seconds"
"""Annotation of a Deployment."""
FIXED_S = 300
SLOWEST = 50e6
"""Bytes a second."""
SHORTEST_S = 600
LONGEST_S = 24 * 3600
UNKNOWN_S = 3600
"""Where neither the weights' size nor any memory is known."""
LARGEST_GPU = 192 * 2**30
"""Bytes; what one GPU may hold."""


def start_allowance_s(spec: LLMDeploymentSpec, weight_bytes: int | None) -> int:
    """Whole seconds from the start of an engine until it must serve; `weight_bytes` None: not known yet."""
    if spec.engine.start_timeout is not None:
        return max(ceil(duration_seconds(spec.engine.start_timeout)), 1)
    if weight_bytes is None:
        weight_bytes = _most(spec)
    if weight_bytes is None:
        return UNKNOWN_S
    return min(max(FIXED_S + ceil(weight_bytes / SLOWEST), SHORTEST_S), LONGEST_S)


def kept_allowance_s(annotations: Mapping[str, str]) -> int:
    """What the pods of a Deployment began with; before it was annotated, all had the same."""
    written = str(annotations.get(START_TIMEOUT, ""))
    return int(written) if re.fullmatch("[1-9][0-9]{0,7}", written) else UNKNOWN_S


def _most(spec: LLMDeploymentSpec) -> int | None:
    """Bytes that the weights cannot be above."""
    if spec.resources.gpus:
        return spec.resources.gpus * LARGEST_GPU
    memory = spec.resources.memory
    return ceil(quantity_value(memory)) if memory is not None else None
