"""The GPU's context, made while the engine is still being imported: torch finds it there instead of making it."""

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

DRIVER = "libcuda.so.1"
SUCCESS = 0


def make_context(device: Literal["auto", "cpu", "cuda"]) -> None:
    """Have the primary context of the GPU that the engine will take: the first one this process may use.

    Needs no torch, and leaves the interpreter free while the driver works. What cannot be had is left to torch, which
    says why; no GPU is touched for a CPU's engine, nor where torch could not use one.
    """
    if device == "cpu" or not _is_torch_for_cuda():
        return
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return
    number, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) == SUCCESS and driver.cuDeviceGet(ctypes.byref(number), 0) == SUCCESS:
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), number)


def _is_torch_for_cuda() -> bool:
    """Read from its files: it may be in the midst of its import."""
    found = find_spec("torch")
    return (
        found is not None
        and found.origin is not None
        and Path(found.origin).with_name("lib").joinpath("libtorch_cuda.so").exists()
    )
