"""A CUDA device beside the CPU: what the engine says on both."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from quire import LLM, SamplingParams
from quire.results import RequestOutput

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))
Outputs = list[RequestOutput]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def full_fp32() -> Iterator[None]:
    """No TF32 in products of fp32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(scope="session")
def make_llm(tiny_model_dir: Callable[..., Path]) -> Callable[..., LLM]:
    """`make_llm(family, device, **settings)`: an fp32 LLM over that family's tiny model, without a tokenizer."""

    def make(family: str, device: str, **settings: Any) -> LLM:
        usual = {"max_num_seqs": 16, "max_model_len": 256, "num_gpu_blocks_override": 200, "dtype": "float32"}
        return LLM(tiny_model_dir(family), device=device, skip_tokenizer_init=True, **{**usual, **settings})

    return make


@pytest.fixture(scope="session")
def on_cpu(make_llm: Callable[..., LLM]) -> Callable[..., Outputs]:
    """`on_cpu(family, prompts, params)`: the answers of the engine on the CPU, with its default settings."""
    made: dict[str, LLM] = {}

    def run(family: str, prompts: list[list[int]], params: list[SamplingParams]) -> Outputs:
        if family not in made:
            made[family] = make_llm(family, "cpu")
        return made[family].generate(prompts, params, use_tqdm=False)

    return run
