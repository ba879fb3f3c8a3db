"""Programmatic dependent launch: a kernel starts while the one before it ends, and waits before it reads.

A kernel launched with `launch_pdl` must call `wait_for_inputs` before it reads or writes anything that another kernel
writes or reads. Weights are written by none, so they may be fetched before.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait_for_inputs():
    """All kernels before this one have ended, and what they wrote is seen."""
    gdc_wait()


@triton.jit
def dependents_may_start():
    """The next kernel may be scheduled beside this one."""
    gdc_launch_dependents()


@triton.jit
def fetch_lines(at, bytes):
    """Ask the L2 cache for so many bytes, a multiple of 16, from each of the addresses `at` on."""
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [at.to(tl.int64, bitcast=True), bytes],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
