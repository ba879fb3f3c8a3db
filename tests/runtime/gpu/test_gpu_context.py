"""The context that an engine begins before torch is imported is the one that torch takes."""

import subprocess
import sys

PROGRAM = """
import ctypes, threading
from quire_runtime.engine.gpu_context import DRIVER, make_context

beside = threading.Thread(target=make_context, args=("auto",))
beside.start()
import torch
beside.join()

def contexts():
    driver, flags, is_active, found = ctypes.CDLL(DRIVER), ctypes.c_uint(), ctypes.c_int(), ctypes.c_void_p()
    driver.cuInit(0)
    driver.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(is_active))
    driver.cuDevicePrimaryCtxRetain(ctypes.byref(found), 0)
    return is_active.value, found.value

assert not torch.cuda.is_initialized()
before = contexts()
assert torch.ones(2, device="cuda").sum().item() == 2
print(before[0], before == contexts())
"""


def test_torch_takes_the_context_that_is_there():
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "1 True\n"), ran.stderr
