"""What a compiled kernel takes of a GPU, and what each target has."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Resources:
    """registers: of a thread (vector registers, AMD's accumulators among them); spilled: bytes of a thread's stack,
    where registers that did not fit go; shared: bytes of shared memory of a program."""

    registers: int
    spilled: int
    shared: int
    warps: int

    def text(self) -> str:
        spilled = f", {self.spilled} bytes spilled" if self.spilled else ""
        return f"{self.registers} registers{spilled}, {self.shared} bytes of shared memory"


@dataclass(frozen=True, slots=True)
class Limits:
    """registers: of a thread; together: of the threads of a program; shared: bytes that a program may use."""

    registers: int
    together: int
    shared: int


# gfx90a and gfx942: four SIMDs of 512 vector registers, 64 lanes each.
_AMD = Limits(registers=512, together=4 * 512 * 64, shared=64 << 10)
LIMITS = {
    "cuda:80": Limits(registers=255, together=64 << 10, shared=163 << 10),
    "cuda:90": Limits(registers=255, together=64 << 10, shared=227 << 10),
    "cuda:100": Limits(registers=255, together=64 << 10, shared=227 << 10),
    "hip:gfx90a": _AMD,
    "hip:gfx942": _AMD,
}


def resources(kernel: Any) -> Resources:
    """Of a kernel that `quire_kernels.aot.compile_launch` compiled, as its assembler counted them."""
    metadata = kernel.metadata
    registers, spilled = _of_cubin(kernel.asm["cubin"]) if "cubin" in kernel.asm else of_amdgcn(kernel.asm["amdgcn"])
    return Resources(registers, spilled, metadata.shared, metadata.num_warps)


def excess(used: Resources, target: str) -> str | None:
    """What of a target's limits a program exceeds, in words; None if it fits. What is spilled is not judged."""
    limits = LIMITS[target]
    threads = used.warps * (32 if target.startswith("cuda") else 64)
    for what, needed, there in (
        ("registers of a thread", used.registers, limits.registers),
        (f"registers of {threads} threads", used.registers * threads, limits.together),
        ("bytes of shared memory", used.shared, limits.shared),
    ):
        if needed > there:
            return f"{needed} {what}, {there} are there"
    return None


def _of_cubin(cubin: bytes) -> tuple[int, int]:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(file)]
        return of_usage(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def of_usage(text: str) -> tuple[int, int]:
    """Registers and spilled bytes, from cuobjdump's words about one kernel."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if not found:
        raise ValueError(f"no resource usage in: {text}")
    return int(found[1]), int(found[2])


def of_amdgcn(text: str) -> tuple[int, int]:
    """Registers and spilled bytes, from the assembly's metadata of one kernel."""
    found = dict(re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", text))
    return int(found["vgpr_count"]), int(found["private_segment_fixed_size"])
