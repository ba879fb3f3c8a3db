"""Compiles every Triton kernel for GPUs that need not be here.

    python -m quire_kernels.aot                               the full matrix: every launch for every target, minutes
    python -m quire_kernels.aot --target cuda:90 --only decode

A launch is recorded by calling the kernel's own launcher on CPU tensors, so that what is compiled is what is served.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

from quire_kernels import tuning
from quire_kernels.batch import SharedPrefix
from quire_kernels.check_attention import make_batch, tensors
from quire_kernels.resources import excess, resources

TARGETS = {
    "cuda:80": ("cuda", 80, 32),
    "cuda:90": ("cuda", 90, 32),
    "cuda:100": ("cuda", 100, 32),
    "hip:gfx90a": ("hip", "gfx90a", 64),
    "hip:gfx942": ("hip", "gfx942", 64),
}


@dataclass(frozen=True, slots=True)
class Launch:
    """One call of a Triton kernel: everything that decides its code."""

    kernel: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def record(name: str, target: str) -> list[Launch]:
    """The launches of one of `launchers()` on a target."""
    with _recorded() as launches, mock.patch.object(tuning, "architecture", return_value=target):
        launchers()[name]()
    return launches


@contextmanager
def _recorded() -> Iterator[list[Launch]]:
    from triton.runtime.jit import JITFunction

    seen: list[Launch] = []

    def note(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        seen.append(Launch(kernel, args, kwargs))

    with mock.patch.object(JITFunction, "run", note):
        yield seen


def compile_launch(launch: Launch, target: str) -> Any:
    """The compiled kernel for one of TARGETS, specialised as a launch on the GPU would be."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile, make_backend
    from triton.runtime.jit import create_function_from_signature

    gpu = GPUTarget(*TARGETS[target])
    backend = make_backend(gpu)
    kernel = launch.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*launch.args, **launch.kwargs)
    options, signature, constants, attributes = kernel._pack_args(
        backend, launch.kwargs, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    return compile(source, target=gpu, options=options.__dict__)


def launchers() -> dict[str, Callable[[], object]]:
    """Calls that together launch every kernel in the variants that models need."""
    cpu = torch.device("cpu")
    found: dict[str, Callable[[], object]] = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        name = str(dtype).removeprefix("torch.")
        for heads, kv_heads, dim in [(8, 2, 128), (7, 1, 64), (4, 4, 80), (4, 1, 256), (4, 2, 32)]:
            for window in (None, 4096):
                shape = f"{heads}/{kv_heads}x{dim} {name}{' windowed' if window else ''}"
                arguments = (heads, kv_heads, dim, dtype, window, cpu)
                found[f"decode_attention {shape}"] = lambda a=arguments: _attention([(300, 1), (40, 1)], *a)
                found[f"balanced decode_attention {shape}"] = lambda a=arguments: _attention([(300, 1)] * 17, *a)
                if not window:
                    found[f"shared balanced decode_attention {shape}"] = lambda a=arguments: _attention(
                        [(300, 1)] * 17, *a, is_shared=True
                    )
                    found[f"shared decode_attention {shape}"] = lambda a=arguments: _attention(
                        [(300, 1), (340, 1)], *a, is_shared=True
                    )
                found[f"prefill_attention {shape}"] = lambda a=arguments: _attention([(0, 90), (20, 70)], *a)
                found[f"invariant attention {shape}"] = lambda a=arguments: _invariant_attention(*a)
            for has_norm in (False, True):
                found[f"rope_and_store {heads}/{kv_heads}x{dim} {name}{' normed' if has_norm else ''}"] = (
                    lambda a=(heads, kv_heads, dim, dtype, has_norm): _rope(*a)
                )
        for width in (128, 2880, 4096):
            found[f"norms {width} {name}"] = lambda a=(width, dtype): _norms(*a)
        found[f"silu_and_mul {name}"] = lambda d=dtype: _silu(d)
        found[f"logprobs {name}"] = lambda d=dtype: _logprobs(d)
        found[f"one_row {name}"] = lambda d=dtype: _one_row(d)
        if dtype != torch.float32:
            found[f"few_rows {name}"] = lambda d=dtype: _few_rows(d)
        found[f"invariant product {name}"] = lambda d=dtype: _invariant_product(d)
        found[f"likeliest {name}"] = lambda d=dtype: _likeliest(d)
    found["decode_inputs"] = _decode_inputs
    found["sample"] = lambda: _sample(False)
    found["sample filters"] = lambda: _sample(True)
    return found


def _attention(
    spans: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    window: int | None,
    device: torch.device,
    is_shared: bool = False,
) -> None:
    from quire_kernels import decode_attention_triton, prefill_attention_triton

    batch, blocks = make_batch(spans, 16, device)
    if is_shared:
        lens, owner = torch.full((len(spans),), 256, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        batch = replace(batch, shared=SharedPrefix(lens, owner))
    q, k_cache, v_cache = tensors(batch, blocks, heads, kv_heads, dim, dtype, device)
    out = torch.empty(q.shape, dtype=dtype)
    if batch.num_decodes:
        # The first layer's differs from those after it.
        for _ in range(2):
            decode_attention_triton.decode_attention(q, k_cache, v_cache, batch, 0.1, window, out)
    else:
        prefill_attention_triton.prefill_attention(q, k_cache, v_cache, batch, 0.1, window, out)


def _invariant_attention(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype, window: int | None, device: torch.device
) -> None:
    from quire_kernels.invariant_attention_triton import invariant_attention

    batch, blocks = make_batch([(300, 1), (20, 70)], 16, device)
    q, k_cache, v_cache = tensors(batch, blocks, heads, kv_heads, dim, dtype, device)
    invariant_attention(q, k_cache, v_cache, batch, 0.1, window, 1024, torch.empty(q.shape, dtype=dtype))


def _rope(heads: int, kv_heads: int, dim: int, dtype: torch.dtype, has_norm: bool) -> None:
    from quire_kernels import rope_triton

    qkv = torch.zeros(3, heads + 2 * kv_heads, dim, dtype=dtype)
    weight = torch.ones(dim, dtype=dtype) if has_norm else None
    cache, places = torch.zeros(2, kv_heads, 16, dim, dtype=dtype), torch.arange(3)
    q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
    rope_triton.rope_and_store(
        q, k, v, places, torch.zeros(64, dim), cache, cache.clone(), places, weight, weight, 1e-6
    )


def _norms(width: int, dtype: torch.dtype) -> None:
    from quire_kernels import norm_triton

    x = torch.zeros(3, width, dtype=dtype)
    norm_triton.rms_norm(x, x[0], 1e-6)
    norm_triton.add_rms_norm(x, x.clone(), x[0].clone(), 1e-6)


def _silu(dtype: torch.dtype) -> None:
    from quire_kernels import activation_triton

    activation_triton.silu_and_mul(torch.zeros(3, 2048, dtype=dtype))


def _logprobs(dtype: torch.dtype) -> None:
    from quire_kernels import logprobs_triton

    logits = torch.zeros(3, 32000, dtype=dtype)
    logprobs_triton.normaliser_and_rank(logits, logits[:, :1].contiguous())


def _one_row(dtype: torch.dtype) -> None:
    from quire_kernels import linear_triton

    x, weight = torch.zeros(1, 3072, dtype=dtype), torch.zeros(64, 3072, dtype=dtype)
    linear_triton.one_row(x, weight, None, None)
    linear_triton.one_row(x[:, :96], weight[:, :96].contiguous(), weight[:, 0].contiguous(), None)
    linear_triton.one_row(x, weight, None, None, weight[0], 1e-5)
    linear_triton.one_row(x, weight, None, None, weight[0], 1e-5, is_gated=True)
    linear_triton.one_row(x, weight, None, torch.zeros(1, 64, dtype=dtype), adds=True)


def _few_rows(dtype: torch.dtype) -> None:
    """On GPUs of other kinds too, though it was measured, and is used, on one only."""
    from quire_kernels.few_rows_triton import FewRowsTile, any_tile_for, launch, tile_for

    small = tuning.architecture() not in ("cuda:90", "cuda:100")
    for tokens, outputs, is_gated in ((2, 64, False), (2, 64, True), (64, 1 << 14, False), (128, 1 << 14, True)):
        x, weight = torch.zeros(tokens, 1024, dtype=dtype), torch.zeros(outputs, 1024, dtype=dtype)
        tile = FewRowsTile(64, 16, 64, 4, 2) if small else tile_for(tokens, outputs, 1024, is_gated)
        assert tile is not None
        out = torch.zeros(tokens, outputs // 2 if is_gated else outputs, dtype=dtype)
        launch(x, weight, weight[:, 0].contiguous() if is_gated else None, out, tile, is_gated)
    for tokens in () if small else (1, 32, 64):
        x, weight = torch.zeros(tokens, 8192, dtype=dtype), torch.zeros(64, 8192, dtype=dtype)
        deep = any_tile_for(tokens, 64, 8192)
        assert deep is not None
        launch(x, weight, None, torch.zeros(tokens, 64, dtype=dtype), deep)


def _invariant_product(dtype: torch.dtype) -> None:
    from quire_kernels.invariant_linear_triton import launch, tiles

    x, weight = torch.zeros(3, 3072, dtype=dtype), torch.zeros(64, 3072, dtype=dtype)
    for tile in tiles(dtype.itemsize):
        launch(x, weight, None, x[:, :64], tile)
    narrow = weight[:, :96].contiguous()
    launch(x[:, :96], narrow, weight[:, 0].contiguous(), x[:, :64], tiles(dtype.itemsize)[0])


def _likeliest(dtype: torch.dtype) -> None:
    from quire_kernels import greedy_triton

    whole = torch.zeros(3, dtype=torch.int32)
    greedy_triton.likeliest(
        torch.zeros(3, 32000, dtype=dtype), -2, whole.view(1, 3), whole, whole, whole, whole.view(3, 1)
    )


def _decode_inputs() -> None:
    from quire_kernels import inputs_triton

    whole, tables = torch.zeros(3, dtype=torch.int32), torch.zeros(4, 64, dtype=torch.int32)
    inputs_triton.decode_inputs(tables, tables, whole, whole, whole, 64, 16)
    inputs_triton.mixed_inputs(tables, tables, whole, whole, torch.zeros(4, dtype=torch.int32), 64, 64, 16)


def _sample(any_filter: bool) -> None:
    from quire_kernels import sampling_triton

    reals, whole, wide = torch.ones(3), torch.ones(3, dtype=torch.int32), torch.zeros(3, dtype=torch.int64)
    with mock.patch.object(torch.Tensor, "gather", lambda tensor, *_: tensor):
        sampling_triton.sample(torch.zeros(3, 32000), reals, whole, reals, reals, wide, wide, whole, any_filter)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile every Triton kernel ahead of time.")
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="default: all")
    parser.add_argument("--only", default="", help="launches whose name holds this text")
    options = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    failures = 0
    for name in launchers():
        for target in options.target or TARGETS:
            if options.only not in name:
                continue
            start = time.perf_counter()
            try:
                used = [resources(compile_launch(launch, target)) for launch in record(name, target)]
                verdict = "; ".join(dict.fromkeys(one.text() for one in used))
                problem = next((what for one in used if (what := excess(one, target))), None)
            except Exception as exception:
                problem = f"{exception!s:.400}"
            if problem:
                failures += 1
                verdict = f"FAIL {problem}"
            print(f"{target:>10}  {time.perf_counter() - start:6.2f} s  {name}: {verdict}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
