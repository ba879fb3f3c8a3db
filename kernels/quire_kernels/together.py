"""Compiles kernels side by side: what a start would otherwise wait for one after the other."""

import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from triton import AsyncCompileMode
from triton.runtime._async_compile import FutureKernel, active_mode
from triton.runtime.cache import triton_key
from triton.runtime.jit import JITFunction

from quire_kernels import inputs_triton

# Their results are places that torch reads from; what else is not computed only leaves wrong numbers.
INDEXING = (inputs_triton._decode_inputs_kernel, inputs_triton._mixed_inputs_kernel)


@cache
def compiler_key() -> Future[str]:
    """Triton's hash of itself, which is part of every kernel's key: begun by the first call, in a thread.

    It reads 400 MiB and takes 0.4 s, for most of which the interpreter is free.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="triton-key").submit(triton_key)


@contextmanager
def compiled_together(device: torch.device) -> Iterator[None]:
    """Within, Triton kernels are compiled instead of launched; at the end all of them can be launched.

    For a pass over the work to come whose results nobody uses. Everything on `device` but those kernels does run, and
    the kernels that give indices too, so that no place outside a tensor is read. Threads are enough: MLIR, ptxas and
    the C compiler of the launchers leave the interpreter free. Only one thread may launch kernels meanwhile.
    """
    compiler_key().result()
    run = JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return run(kernel, *args, grid=grid, warmup=warmup or kernel not in INDEXING, **kwargs)

    threads = len(os.sched_getaffinity(0))
    with (
        _no_garbage_collection(),
        _Compilers(threads, "compile", initializer=torch.cuda.set_device, initargs=(device,)) as compilers,
        _Once(compilers),
    ):
        JITFunction.run = compile_only
        try:
            yield
        finally:
            JITFunction.run = run


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection may let another thread run in the middle of `ast.parse`, of which Python can do only one at a time
    before 3.11.8 and 3.12.2 (python/cpython#106905)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Compilers(ThreadPoolExecutor):
    """Makes a kernel's launcher and loads it too: both would be done at its first launch."""

    def submit(self, compile_kernel: Callable[[], Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def ready() -> Any:
            kernel = compile_kernel(*args, **kwargs)
            kernel.run  # noqa: B018
            return kernel

        return super().submit(ready)


class _Once(AsyncCompileMode):
    """Lets a kernel's next launches find the one that is being compiled; ends also when one does not compile."""

    def submit(self, key: str, compile_fn: Callable[[], Any], finalize_fn: Callable[[Any], None]) -> FutureKernel:
        known = key in self.future_kernels
        future = super().submit(key, compile_fn, finalize_fn)
        if not known:
            finalize_fn(future)
        return future

    def __exit__(self, *raised: Any) -> None:
        try:
            super().__exit__(*raised)
        finally:
            active_mode.set(None)
