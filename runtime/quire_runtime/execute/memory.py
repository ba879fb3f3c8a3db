"""Where the memory goes: a budget made before the KV cache is allocated, and shown at start."""

from dataclasses import dataclass
from pathlib import Path

import torch

from quire_api.errors import UserError
from quire_runtime.config import EngineConfig
from quire_runtime.execute.kvcache import block_bytes
from quire_runtime.model.config import ModelConfig

GiB = 2**30
CPU_SHARE = 0.25
"""Of the memory available now, the KV cache of an engine on a CPU takes at most this share."""
CUDA_RESERVE = 0.02
MOST_RESERVE = GiB
"""Kept for graphs and fragmentation: a share of the GPU's memory, and at most so much."""


class DoesNotFit(UserError):
    """The model cannot run in the memory it was given."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by purpose, and what they make possible."""

    total: int
    weights: int
    workspace: int
    reserve: int
    block: int
    num_blocks: int
    max_model_len: int
    block_size: int

    @property
    def kv(self) -> int:
        return self.num_blocks * self.block

    def table(self) -> str:
        """The budget as lines for the log."""
        usable = self.num_blocks - 1
        rows = [
            ("weights", self.weights, ""),
            ("workspace", self.workspace, "activations of the largest step"),
            ("kv cache", self.kv, f"{usable} blocks of {self.block_size} = {usable * self.block_size} tokens"),
            ("reserve", self.reserve, ""),
            ("free", self.total - self.weights - self.workspace - self.kv - self.reserve, ""),
        ]
        lines = [f"  {name:<10} {size / GiB:9.3f} GiB  {note}".rstrip() for name, size, note in rows]
        return "\n".join([f"memory: {self.total / GiB:.1f} GiB, window {self.max_model_len} tokens", *lines])


def require_room(config: EngineConfig, device: torch.device, weights: int) -> None:
    """Before anything is allocated on a GPU: its weights must fit into what is free now.

    Raises:
        DoesNotFit: they do not; says so where another process, a second engine perhaps, holds the memory.
    """
    free, total = torch.cuda.mem_get_info(device)
    if weights <= free:
        return
    taken = total - free - torch.cuda.memory_reserved(device)
    blame = f"; other processes hold {taken / GiB:.1f} GiB" if taken > total // 20 else ""
    advice = "End them, or give each engine a GPU of its own." if blame else "Use a larger GPU or a smaller model."
    raise DoesNotFit(
        f"{config.model}: weights need {weights / GiB:.1f} GiB, but of the GPU's {total / GiB:.1f} GiB "
        f"{free / GiB:.1f} are free{blame}. {advice}"
    )


def plan_memory(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    weights: int,
    workspace: int,
) -> MemoryPlan:
    """Blocks and window for the memory there is; `weights` and `workspace` in bytes, already taken or measured.

    Raises:
        DoesNotFit: not even one sequence of the window asked for has room, or more was asked for by hand than there is.
    """
    size = config.block_size
    block = block_bytes(model.num_layers, model.num_kv_heads, size, model.head_dim, dtype)
    is_auto = config.max_model_len == "auto"
    window = model.max_position_embeddings if isinstance(config.max_model_len, str) else config.max_model_len
    if window > model.max_position_embeddings:
        raise DoesNotFit(
            f"{config.model}: max_model_len {window} is above the model's own limit of {model.max_position_embeddings} "
            "positions. Lower max_model_len."
        )
    total, reserve, room = _room(config, device, weights, workspace)
    per_sequence = -(-(window + 1) // size)
    if config.num_gpu_blocks_override is not None:
        num_blocks = config.num_gpu_blocks_override
    else:
        if config.kv_cache_memory is not None:
            room = min(room, config.kv_cache_memory) if device.type == "cuda" else config.kv_cache_memory
        num_blocks = max(room, 0) // block
        if config.kv_cache_memory is None:
            num_blocks = min(num_blocks, config.max_num_seqs * per_sequence + 1)
        if is_auto and 2 <= num_blocks < per_sequence + 1:
            window = (num_blocks - 1) * size - 1
            per_sequence = num_blocks - 1
        if num_blocks < per_sequence + 1:
            need, left = (per_sequence + 1) * block, max(room, 0)
            raise DoesNotFit(
                f"{config.model}: weights need {weights / GiB:.2f} GiB and one sequence of {window} tokens "
                f"{need / GiB:.2f} GiB of KV cache, but {left / GiB:.2f} of {total / GiB:.1f} GiB are left for it. "
                "Lower max_model_len, raise kv_cache_memory or use a machine with more memory."
            )
    if num_blocks * block > total - weights:
        raise DoesNotFit(
            f"{config.model}: a KV cache of {num_blocks} blocks needs {num_blocks * block / GiB:.2f} GiB, but beside "
            f"the weights there are {max(total - weights, 0) / GiB:.2f} GiB. Lower kv_cache_memory or "
            "num_gpu_blocks_override."
        )
    return MemoryPlan(total, weights, workspace, reserve, block, num_blocks, window, size)


def _room(config: EngineConfig, device: torch.device, weights: int, workspace: int) -> tuple[int, int, int]:
    """(memory of the device, reserve, bytes left for the KV cache)"""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserve = min(int(CUDA_RESERVE * total), MOST_RESERVE)
        taken_by_others = total - free - torch.cuda.memory_reserved(device)
        budget = int(config.gpu_memory_utilization * total)
        return total, reserve, budget - max(taken_by_others, 0) - weights - workspace - reserve
    available = available_memory()
    return available + weights, 0, int(CPU_SHARE * available)


def available_memory() -> int:
    """Bytes this process may still take: the machine's available memory, or less where a cgroup bounds it."""
    meminfo = Path("/proc/meminfo")
    available = 4 * GiB
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (bound := limit.read_text().strip()).isdigit():
        available = min(available, max(int(bound) - int(used.read_text()), 0))
    return available
