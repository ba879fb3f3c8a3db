"""What an engine says when an error that is nobody's fault ends it."""

from dataclasses import dataclass

SHOWN = 300


@dataclass(frozen=True, slots=True)
class Fault:
    """Why the engine stopped: one word for machines, and one paragraph for people that says what to do."""

    reason: str
    message: str


def diagnose(error: Exception) -> Fault:
    """The fault that an error shows which ended the engine's loop."""
    # By name and text: whoever only carries messages need not import torch, whose own classes differ by version.
    kind, text = type(error).__name__, str(error).strip().partition("\n")[0][:SHOWN]
    if kind == "OutOfMemoryError":
        return Fault(
            "OutOfMemory",
            f"The engine stopped: a step needed more memory than the GPU has left ({text}). Another process may have "
            "taken it. Lower gpu_memory_utilization or max_num_batched_tokens.",
        )
    if kind == "AcceleratorError" or "CUDA error" in text or "HIP error" in text:
        return Fault(
            "GPULost",
            f"The engine stopped: the GPU failed ({text}). What it held is lost; start the engine again. The kernel's "
            "log tells the cause (dmesg, lines with Xid). A GPU that fails again at once needs a reset, or its node "
            "replaced.",
        )
    return Fault(
        "EngineDied",
        f"The engine stopped: {kind}: {text}. Its log has the stack. Start it again, and report it if that recurs.",
    )
