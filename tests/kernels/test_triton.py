"""Triton kernels against their references, in Triton's interpreter.

The interpreter is chosen when a kernel is defined, so the whole matrix runs in one process of its own.
"""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton.runtime.jit import JITFunction

import quire_kernels
from quire_kernels import aot, check
from quire_kernels.resources import LIMITS, Resources, excess, of_amdgcn, of_usage, resources

CASES = [case.name for case in check.cases(full=False)]
TARGETS = list(aot.TARGETS)
COMPILED = [
    "decode_attention 8/2x128 bfloat16",
    "decode_attention 4/2x32 float32 windowed",
    "balanced decode_attention 8/2x128 bfloat16",
    "shared balanced decode_attention 4/2x32 float32",
    "shared decode_attention 8/2x128 bfloat16",
    "prefill_attention 8/2x128 bfloat16",
    "prefill_attention 7/1x64 bfloat16",
    "prefill_attention 4/1x256 bfloat16",
    "prefill_attention 4/2x32 float32 windowed",
    "invariant attention 8/2x128 bfloat16",
    "invariant attention 4/1x256 bfloat16",
    "invariant attention 4/2x32 float32 windowed",
    "invariant product bfloat16",
    "invariant product float32",
    "rope_and_store 4/4x80 bfloat16 normed",
    "norms 2880 bfloat16",
    "silu_and_mul bfloat16",
    "logprobs bfloat16",
    "one_row bfloat16",
    "few_rows bfloat16",
    "likeliest bfloat16",
    "decode_inputs",
    "sample",
    "sample filters",
]

# Bytes of a thread's stack that are allowed where not 0: what these shapes take. Those of 8 hold a few predicates.
SPILLED = {
    ("invariant attention 8/2x128 bfloat16", "cuda:90"): 40,
    ("invariant attention 4/1x256 bfloat16", "cuda:80"): 40,
    ("invariant attention 4/1x256 bfloat16", "cuda:100"): 104,
    ("invariant attention 4/2x32 float32 windowed", "cuda:80"): 8,
    ("invariant attention 4/2x32 float32 windowed", "cuda:90"): 8,
    ("invariant attention 4/2x32 float32 windowed", "cuda:100"): 8,
}


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Name of each case -> what is wrong with it."""
    results: Path = tmp_path_factory.mktemp("kernels") / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "quire_kernels.check", "--device", "cpu", "--json", str(results)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    assert results.exists(), done.stdout
    return {result["name"]: result["problem"] for result in json.loads(results.read_text())}


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_its_reference(name: str, interpreted: dict[str, str | None]):
    assert interpreted[name] is None, interpreted[name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_equal_their_references_on_the_gpu():
    results = check.run(check.cases(full=True), torch.device("cuda"))
    assert [result["name"] for result in results if result["problem"]] == []


def test_every_kernel_is_among_those_that_are_compiled():
    """A kernel, unlike a function that kernels call, is named so."""
    modules = [
        importlib.import_module(f"quire_kernels.{found.name}") for found in pkgutil.iter_modules(quire_kernels.__path__)
    ]
    kernels = {
        (found.__module__, found.__name__)
        for module in modules
        for found in vars(module).values()
        if isinstance(found, JITFunction) and found.__name__.endswith("_kernel")
    }
    compiled = {
        (launch.kernel.__module__, launch.kernel.__name__)
        for name in COMPILED
        for launch in aot.record(name, "cuda:90")
    }
    assert compiled == kernels


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", COMPILED)
def test_kernel_compiles_ahead_of_time_within_what_the_target_has(name: str, target: str):
    launches = aot.record(name, target)
    assert launches
    for launch in launches:
        kernel = aot.compile_launch(launch, target)
        assert kernel.asm["cubin" if target.startswith("cuda") else "hsaco"]
        used = resources(kernel)
        assert used.registers > 0
        assert excess(used, target) is None
        assert used.spilled <= SPILLED.get((name, target), 0)


@pytest.mark.parametrize(
    ("used", "problem"),
    [
        (Resources(255, 0, 227 << 10, 8), None),
        (Resources(256, 0, 0, 4), "256 registers of a thread, 255 are there"),
        (Resources(255, 0, 0, 9), "73440 registers of 288 threads, 65536 are there"),
        (Resources(32, 0, 232449, 4), "232449 bytes of shared memory, 232448 are there"),
    ],
)
def test_a_program_that_exceeds_its_target_is_told_by_what(used: Resources, problem: str | None):
    assert excess(used, "cuda:90") == problem


def test_every_target_has_limits():
    assert set(LIMITS) == set(aot.TARGETS)


def test_what_an_assembler_says_of_a_kernel_is_read():
    usage = (
        " Function _prefill_kernel:\n  REG:255 STACK:24 SHARED:0 LOCAL:0 CONSTANT[0]:632 TEXTURE:0 SURFACE:0 SAMPLER:0"
    )
    assert of_usage(usage) == (255, 24)
    with pytest.raises(ValueError, match="no resource usage"):
        of_usage("cuobjdump fatal")
    metadata = (
        "    .private_segment_fixed_size: 8\n    .sgpr_count: 40\n    .vgpr_count: 512\n    .vgpr_spill_count: 2\n"
    )
    assert of_amdgcn(metadata) == (512, 8)
