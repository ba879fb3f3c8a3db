"""Compiling side by side, for a GPU that need not be here: a driver that only counts launches stands in for it."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.cache import triton_key
from triton.runtime.jit import JITFunction

from quire_kernels import aot, resources, tuning
from quire_kernels.together import compiled_together, compiler_key

NAMES = ["norms 4096 bfloat16", "silu_and_mul bfloat16", "one_row bfloat16", "likeliest bfloat16", "decode_inputs"]


class Counting:
    """What Triton asks of a driver: sm_90, and launchers that note the kernel's name."""

    def __init__(self) -> None:
        self.launched: list[str] = []
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": resources.LIMITS["cuda:90"].shared}

    def load_binary(self, *binary: Any) -> tuple[int, ...]:
        return 1, 1, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *arguments: self.launched.append(source.name)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counting:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(tuning, "architecture", lambda: "cuda:90")
    stand_in = Counting()
    monkeypatch.setattr(driver, "_active", stand_in)
    return stand_in


def test_a_pass_compiles_each_kernel_once_and_runs_only_those_that_give_indices(
    counting: Counting, monkeypatch: pytest.MonkeyPatch
):
    compiled: list[str] = []
    monkeypatch.setattr(knobs.compilation, "listener", lambda *, src, **rest: compiled.append(src.name))
    launchers = aot.launchers()
    with compiled_together(torch.device("cpu")):
        for name in NAMES * 2:
            launchers[name]()
    in_pass = len(compiled)
    assert counting.launched == ["_decode_inputs_kernel", "_mixed_inputs_kernel"] * 2
    assert in_pass >= 10
    counting.launched.clear()
    for name in NAMES:
        launchers[name]()
    assert len(compiled) == in_pass
    assert len(counting.launched) == in_pass


def test_a_kernel_that_does_not_compile_ends_the_pass(counting: Counting, monkeypatch: pytest.MonkeyPatch):
    run = JITFunction.run

    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no such instruction")

    def compile_one() -> None:
        with compiled_together(torch.device("cpu")):
            aot.launchers()["norms 4096 float16"]()

    monkeypatch.setattr("quire_kernels.norm_triton._rms_norm_kernel.compile", fail)
    with pytest.raises(RuntimeError, match="no such instruction"):
        compile_one()
    assert JITFunction.run is run
    assert gc.isenabled()
    with compiled_together(torch.device("cpu")):
        pass


def test_nothing_is_collected_while_sources_are_parsed_side_by_side(counting: Counting):
    """Of two that are parsed at once one fails where a collection lets the other go on."""
    names = ["norms 4096 float32", "rope_and_store 4/2x32 bfloat16"]
    launchers = aot.launchers()
    collections: list[str] = []

    def note(phase: str, _: dict[str, Any]) -> None:
        collections.append(phase)

    threshold = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(50)
    try:
        with compiled_together(torch.device("cpu")):
            collections.clear()
            for name in names:
                launchers[name]()
            in_pass = len(collections)
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(note)
    assert (in_pass, gc.isenabled()) == (0, True)
    for name in names:
        launchers[name]()
    assert counting.launched


def test_triton_hashes_itself_once_and_beside_what_else_is_done():
    triton_key.cache_clear()
    compiler_key.cache_clear()
    begun = compiler_key()
    assert begun is compiler_key()
    assert begun.result() == triton_key()
    assert triton_key.cache_info().misses == 1
