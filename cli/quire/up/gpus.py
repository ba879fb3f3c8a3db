"""Which replica has which of this machine's GPUs."""

import os
import re
from pathlib import Path


def devices_of_this_machine() -> list[str]:
    """Ids for CUDA_VISIBLE_DEVICES: what that variable allows already, else one for each device file."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [device.strip() for device in allowed.split(",") if device.strip()]
    numbers = (re.fullmatch(r"nvidia([0-9]+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return [str(index) for index, _ in enumerate(filter(None, numbers))]


def lacking(wanted: int, free: int, total: int) -> str:
    """`2 GPUs, but 1 of this machine's 4 is free`: what stands behind "needs"."""
    gpus = "1 GPU" if wanted == 1 else f"{wanted} GPUs"
    if total == 0:
        return f"{gpus}, but this machine has none"
    if wanted > total:
        return f"{gpus}, but this machine has {total}"
    return f"{gpus}, but {free} of this machine's {total} {'is' if free == 1 else 'are'} free"


class Gpus:
    """A fixed set of GPUs, each held by at most one replica."""

    def __init__(self, devices: list[str]) -> None:
        self.total = len(devices)
        self._free = list(devices)
        self._held: dict[str, list[str]] = {}

    def take(self, holder: str, count: int) -> list[str] | None:
        """`count` devices for `holder`, which gives back what it held; None when too few are free."""
        self.release(holder)
        if count > len(self._free):
            return None
        self._held[holder], self._free = self._free[:count], self._free[count:]
        return self._held[holder]

    def release(self, holder: str) -> None:
        self._free += self._held.pop(holder, [])

    @property
    def free(self) -> int:
        return len(self._free)
