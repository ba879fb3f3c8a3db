"""How old this process is, its interpreter's start and all imports included."""

import os
import time
from pathlib import Path

_IMPORTED = time.monotonic()


def process_age_s() -> float:
    """Seconds since this process began; where the system does not say, since this module was imported."""
    try:
        # Behind the name in brackets, which may hold spaces: field 22 of all, in ticks since the machine's start.
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _IMPORTED
    return max(age, time.monotonic() - _IMPORTED)
