"""Triton kernels against their references, in Triton's interpreter.

The interpreter is chosen when a kernel is defined, so the whole matrix runs in one process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quire_kernels import aot, check

CASES = [case.name for case in check.cases(full=False)]
TARGETS = list(aot.TARGETS)
COMPILED = [
    "decode_attention 8/2x128 bfloat16",
    "decode_attention 4/2x32 float32 windowed",
    "balanced decode_attention 8/2x128 bfloat16",
    "shared balanced decode_attention 4/2x32 float32",
    "shared decode_attention 8/2x128 bfloat16",
    "prefill_attention 8/2x128 bfloat16",
    "prefill_attention 4/2x32 float32 windowed",
    "invariant attention 8/2x128 bfloat16",
    "invariant attention 4/2x32 float32 windowed",
    "invariant product bfloat16",
    "invariant product float32",
    "rope_and_store 4/4x80 bfloat16 normed",
    "norms 2880 bfloat16",
    "silu_and_mul bfloat16",
    "logprobs bfloat16",
    "sample",
    "sample filters",
]


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
        timeout=500,
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


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", COMPILED)
def test_kernel_compiles_ahead_of_time(name: str, target: str):
    launches = aot.record(name, target)
    assert launches
    for launch in launches:
        kernel = aot.compile_launch(launch, target)
        assert kernel.asm["cubin" if target.startswith("cuda") else "hsaco"]
        assert kernel.metadata.shared <= aot.SHARED_MEMORY[target]
