"""Where the memory goes: a budget made before the KV cache is allocated, and shown at start."""

from dataclasses import dataclass
from pathlib import Path

import torch

from quire_runtime.config import EngineConfig
from quire_runtime.execute.kvcache import block_bytes
from quire_runtime.execute.window import require_window
from quire_runtime.model.config import ModelConfig
from quire_runtime.model.errors import DoesNotFit

GiB = 2**30
CPU_SHARE = 0.25
"""Of the memory available now, the KV cache of an engine on a CPU takes at most this share."""
LEAST_AUTO = 1024
"""Tokens of the shortest window that `auto` takes, of a model that has so many positions."""
CUDA_RESERVE = 0.02
MOST_RESERVE = GiB
"""Kept for graphs and fragmentation: a share of the GPU's memory, and at most so much."""
NOTEWORTHY_SHARE = 0.05
"""Of a GPU's memory, what others must hold to be spoken of: less than that is a driver's and a desktop's."""


@dataclass(frozen=True, slots=True)
class Supply:
    """Bytes of a device: all of it, and what other processes hold (the driver's part for this one counts to them)."""

    total: int
    others: int = 0

    @property
    def blame(self) -> str:
        """What is said of others in the midst of a sentence, where they hold enough to be at fault."""
        return (
            f"; other processes hold {self.others / GiB:.1f} GiB" if self.others > NOTEWORTHY_SHARE * self.total else ""
        )


SHARING_ADVICE = "End them, or give each engine a GPU of its own or a smaller gpu_memory_utilization."


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by purpose, and what they make possible. others: as Supply's, 0 on a CPU."""

    total: int
    weights: int
    workspace: int
    reserve: int
    block: int
    num_blocks: int
    max_model_len: int
    block_size: int
    others: int = 0

    @property
    def kv(self) -> int:
        return self.num_blocks * self.block

    @property
    def free(self) -> int:
        return self.total - self.others - self.weights - self.workspace - self.kv - self.reserve

    def table(self) -> str:
        """The budget as lines for the log."""
        usable = self.num_blocks - 1
        rows = [
            ("weights", self.weights, ""),
            ("workspace", self.workspace, "activations of the largest step"),
            ("kv cache", self.kv, f"{usable} blocks of {self.block_size} = {usable * self.block_size} tokens"),
            ("reserve", self.reserve, ""),
            *([("others", self.others, "other processes, and the driver")] if self.others else []),
            ("free", self.free, ""),
        ]
        lines = [f"  {name:<10} {size / GiB:9.3f} GiB  {note}".rstrip() for name, size, note in rows]
        return "\n".join([f"memory: {self.total / GiB:.1f} GiB, window {self.max_model_len} tokens", *lines])


def require_room(config: EngineConfig, device: torch.device, weights: int) -> None:
    """Before anything is allocated: the weights must fit into what is free now.

    Raises:
        DoesNotFit: they do not; says so where another process, a second engine perhaps, holds a GPU's memory.
    """
    if device.type != "cuda":
        free = available_memory()
        if weights > free:
            raise DoesNotFit(
                f"{config.model}: weights need {weights / GiB:.1f} GiB, but {free / GiB:.1f} GiB of memory are "
                "available. Use a machine or a memory limit with more, a smaller dtype or a smaller model."
            )
        return
    supply = gpu_supply(device)
    if weights <= supply.total - supply.others:
        return
    raise DoesNotFit(
        f"{config.model}: weights need {weights / GiB:.1f} GiB, but of the GPU's {supply.total / GiB:.1f} GiB "
        f"{(supply.total - supply.others) / GiB:.1f} are free{supply.blame}. "
        f"{SHARING_ADVICE if supply.blame else 'Use a larger GPU or a smaller model.'}"
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Is it torch's word for an allocation that failed? For CPUs it has no class."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def out_of_memory(config: EngineConfig, device: torch.device, phase: str, error: Exception) -> DoesNotFit:
    """What to say when an allocation failed in a phase of the start, which the budget should have left room for."""
    text = str(error).strip().partition("\n")[0].partition(". GPU")[0].rstrip(".")
    if device.type == "cuda":
        supply = gpu_supply(device)
        there = f"the GPU has {supply.total / GiB:.1f} GiB{supply.blame}"
        mending = "Lower gpu_memory_utilization or max_num_batched_tokens, or use a larger GPU."
        advice = SHARING_ADVICE if supply.blame else mending
    else:
        there = f"{available_memory() / GiB:.1f} GiB of memory are available"
        advice = "Lower kv_cache_memory or max_num_batched_tokens, or use a machine or a memory limit with more."
    return DoesNotFit(f"{config.model}: memory ran out during the start ({phase}; {text}); {there}. {advice}")


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
    longest = model.max_position_embeddings
    is_auto = isinstance(config.max_model_len, str)
    window = longest if isinstance(config.max_model_len, str) else config.max_model_len
    require_window(config, model)
    if device.type == "cuda":
        supply = gpu_supply(device)
        reserve = min(int(CUDA_RESERVE * supply.total), MOST_RESERVE)
        used = weights + workspace + reserve
        most = supply.total - supply.others - used
        share = int(config.gpu_memory_utilization * supply.total) - used
        room = min(share, most) if config.kv_cache_memory is None else min(share, most, config.kv_cache_memory)
    else:
        most = available_memory()
        supply, reserve = Supply(most + weights), 0
        share = room = config.kv_cache_memory or int(CPU_SHARE * most)
    if config.num_gpu_blocks_override is not None:
        num_blocks = config.num_gpu_blocks_override
    else:
        per_sequence = -(-(window + 1) // size)
        num_blocks = max(room, 0) // block
        if config.kv_cache_memory is None:
            num_blocks = min(num_blocks, config.max_num_seqs * per_sequence + 1)
        fitting = (num_blocks - 1) * size - 1
        least = min(LEAST_AUTO, longest) if is_auto else window
        if fitting < least:
            need = (-(-(least + 1) // size) + 1) * block
            what = f"{least} tokens, the least that auto takes," if is_auto and least < longest else f"{least} tokens"
            by_hand = "Set max_model_len by hand" if is_auto else "Lower max_model_len"
            blame = supply.blame if share >= need else ""
            left = f"of the GPU's {supply.total / GiB:.1f} GiB" if device.type == "cuda" else "GiB of memory"
            raise DoesNotFit(
                f"{config.model}: weights need {weights / GiB:.2f} GiB, the largest step {workspace / GiB:.2f} and one "
                f"sequence of {what} {need / GiB:.2f} of KV cache, for which {max(room, 0) / GiB:.2f} {left} are left"
                f"{blame}. {SHARING_ADVICE if blame else f'{by_hand}, {_raise_what(config, device)}.'}"
            )
        window = min(window, fitting)
    if num_blocks * block > most:
        blame = supply.blame if num_blocks * block <= most + supply.others else ""
        advice = f"{SHARING_ADVICE} Or lower" if blame else "Lower"
        raise DoesNotFit(
            f"{config.model}: a KV cache of {num_blocks} blocks needs {num_blocks * block / GiB:.2f} GiB, but beside "
            f"the weights there are {max(most, 0) / GiB:.2f} GiB{blame}. {advice} kv_cache_memory or "
            "num_gpu_blocks_override."
        )
    return MemoryPlan(supply.total, weights, workspace, reserve, block, num_blocks, window, size, supply.others)


def remarks(config: EngineConfig, model: ModelConfig, plan: MemoryPlan) -> list[str]:
    """What a user should know who did not ask for it: sentences for the log."""
    said = []
    if Supply(plan.total, plan.others).blame:
        said.append(
            f"other processes hold {plan.others / GiB:.1f} of the GPU's {plan.total / GiB:.1f} GiB; they and this "
            "engine take each other's memory and time"
        )
    if plan.max_model_len < model.max_position_embeddings and config.max_model_len == "auto":
        said.append(
            f"the window is {plan.max_model_len} of the model's {model.max_position_embeddings} tokens, for want of "
            "memory for its KV cache; set max_model_len to be refused instead"
        )
    return said


def _raise_what(config: EngineConfig, device: torch.device) -> str:
    if config.kv_cache_memory is not None or device.type != "cuda":
        return "raise kv_cache_memory or use a machine with more memory"
    return "raise gpu_memory_utilization or use a larger GPU"


def gpu_supply(device: torch.device) -> Supply:
    free, total = torch.cuda.mem_get_info(device)
    return Supply(total, max(total - free - torch.cuda.memory_reserved(device), 0))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes this process may still take: the machine's available memory, or less where a cgroup bounds it.

    Files that the cgroup's processes have read count to it, and give way.
    """
    meminfo = root / "proc/meminfo"
    available = 4 * GiB
    if meminfo.exists():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    group = root / "sys/fs/cgroup"
    limit, used, stat = group / "memory.max", group / "memory.current", group / "memory.stat"
    if limit.exists() and used.exists() and (bound := limit.read_text().strip()).isdigit():
        counts = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
        files = int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0))
        available = min(available, max(int(bound) - int(used.read_text()) + files, 0))
    return available
