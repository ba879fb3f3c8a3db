"""Whether a model fits, by arithmetic, before its weights are here. Pure.

    needed = weights + cache of one sequence of maxModelLen + overhead

against one GPU's memory, or against the pod's memory limit where there is no GPU. It follows the engine's own budget
(quire_runtime.execute.memory), but says no only where that could not say yes: what the engine measures (activations,
what other processes take) is left to it. Without the model's shape or the memory's size nothing is said.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from quire_api.blocks import DEFAULT_BLOCK_SIZE
from quire_api.v1alpha1 import LLMDeployment
from quire_api.v1alpha1_values import quantity_value
from quire_api.wire import ModelShape
from quire_operator.build_pod import ENGINE
from quire_operator.merge import Manifest
from quire_operator.serving import serve_flags
from quire_operator.world import Fit

GiB = 2**30
MiB = 2**20
GPU_SHARE = 0.9
"""Of a GPU's memory, what an engine uses unless it is told otherwise."""
GPU_OVERHEAD = 0.02
"""Of a GPU's memory, kept for graphs, fragmentation and the driver."""
CPU_OVERHEAD = 0.25 * GiB
"""Of a process with torch in it, before any model."""
CPU_CACHE_SHARE = 0.25
"""Of the memory beside weights and overhead, what the cache takes on a CPU unless it is told otherwise."""
VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
AMD_LABEL = "amd.com/gpu.vram"


@dataclass(frozen=True)
class Memory:
    """What one replica may use."""

    size: float
    """Bytes."""
    is_gpu: bool
    where: str
    """For people."""


def memory_of(pod: Manifest, node_labels: Mapping[str, str], gpu_resource: str) -> Memory | None:
    """Memory of one of the pod's GPUs, as the labels of its node tell it, or its engine's memory limit."""
    containers = pod.get("spec", {}).get("containers") or ()
    engine: Mapping[str, Any] = next((c for c in containers if c.get("name") == ENGINE), {})
    limits = (engine.get("resources") or {}).get("limits") or {}
    if limits.get(gpu_resource) not in (None, "0", 0):
        node = pod.get("spec", {}).get("nodeName", "")
        # GPU feature discovery writes NAME.memory in MiB, for whole GPUs as for slices of one.
        for label, unit in ((f"{gpu_resource}.memory", MiB), (AMD_LABEL, GiB)):
            size = _amount(node_labels.get(label, "").removesuffix("G"))
            if size:
                return Memory(size * unit, True, f"a GPU of node {node} has")
        return None
    size = _amount(limits.get("memory"))
    return Memory(size, False, "the memory limit is") if size else None


def fit_of(deployment: LLMDeployment, shape: ModelShape, memory: Memory | None) -> Fit:
    """The verdict on one replica of this deployment."""
    flags = serve_flags(deployment, "", "", 0, 0.0)
    window = _window(flags, shape)
    if window is not None and window > shape.max_positions:
        message = f"maxModelLen {window} is above the model's own limit of {shape.max_positions} positions"
        return Fit(False, f"{message}; lower engine.maxModelLen")
    if memory is None:
        return Fit(None, _unknown(deployment, shape))
    weights, cache = _weights(flags, shape, memory.is_gpu), _cache(flags, shape, memory.is_gpu, window)
    if memory.is_gpu:
        usable = memory.size * (_share(flags) - GPU_OVERHEAD)
        room, overhead = usable - weights, memory.size * GPU_OVERHEAD
    else:
        overhead = CPU_OVERHEAD
        free = memory.size - overhead - weights
        room = free if _flag(flags, "--kv-cache-memory") else CPU_CACHE_SHARE * free
    sequence = f"one sequence of {window} tokens" if window else "the smallest cache"
    needs = f"weights need {_gib(weights)}, {sequence} {_gib(cache)} and overhead {_gib(overhead)}"
    if cache <= room:
        return Fit(True, f"{needs}; {memory.where} {_gib(memory.size)}")
    left = f"{memory.where} {_gib(memory.size)}, of which {_gib(max(room, 0.0))} are left for the cache"
    return Fit(False, f"{needs}, but {left}. {_way_out(memory, has_window=window is not None)}")


def worst(fits: Sequence[Fit]) -> Fit | None:
    """Of several replicas' verdicts the one that a person must know first."""
    order: dict[bool | None, int] = {False: 0, None: 1, True: 2}
    return min(fits, key=lambda fit: order[fit.fits], default=None)


def _window(flags: Sequence[str], shape: ModelShape) -> int | None:
    """Tokens that one sequence must have room for; None where the engine shrinks its window to what there is."""
    text = _flag(flags, "--max-model-len")
    return int(text) if text is not None and re.fullmatch("[0-9]{1,12}", text) else None


def _weights(flags: Sequence[str], shape: ModelShape, is_gpu: bool) -> float:
    return shape.weight_bytes * _value_bytes(flags, shape, is_gpu) / max(shape.value_bytes, 1)


def _cache(flags: Sequence[str], shape: ModelShape, is_gpu: bool, window: int | None) -> float:
    """Bytes of the blocks for one sequence and the one for padding."""
    text = _flag(flags, "--block-size") or ""
    size = int(text) if re.fullmatch("[1-9][0-9]{0,3}", text) else DEFAULT_BLOCK_SIZE
    blocks = ceil((window + 1) / size) + 1 if window else 2
    return float(blocks * size * shape.kv_values_per_token * _value_bytes(flags, shape, is_gpu))


def _value_bytes(flags: Sequence[str], shape: ModelShape, is_gpu: bool) -> int:
    asked = _flag(flags, "--dtype") or "auto"
    if asked in VALUE_BYTES:
        return VALUE_BYTES[asked]
    # Weights of float32 run as bfloat16 on a GPU.
    return min(shape.value_bytes, 2) if is_gpu else shape.value_bytes


def _share(flags: Sequence[str]) -> float:
    try:
        share = float(_flag(flags, "--gpu-memory-utilization") or GPU_SHARE)
    except ValueError:
        return GPU_SHARE
    return share if 0 < share <= 1 else GPU_SHARE


def _flag(flags: Sequence[str], name: str) -> str | None:
    """The last value given for a flag, as the engine takes it."""
    found = None
    for flag, following in zip(flags, (*flags[1:], ""), strict=True):
        if flag == name:
            found = following
        elif flag.startswith(f"{name}="):
            found = flag.partition("=")[2]
    return found


def _amount(text: Any) -> float | None:
    try:
        return quantity_value(str(text))
    except ValueError:
        return None


def _unknown(deployment: LLMDeployment, shape: ModelShape) -> str:
    wanting = (
        "the node has no label with its GPU memory" if deployment.spec.resources.gpus else "no memory limit is set"
    )
    return f"the weights take {_gib(shape.weight_bytes)}; {wanting}, so the engine will tell"


def _way_out(memory: Memory, *, has_window: bool) -> str:
    lower = "Lower engine.maxModelLen" if has_window else "Choose a smaller model"
    return f"{lower}, or {'use a larger GPU' if memory.is_gpu else 'raise resources.memory'}."


def _gib(size: float) -> str:
    return f"{size / GiB:.1f} GiB" if size >= GiB / 10 else f"{size / MiB:.0f} MiB"
