"""On a GPU, `--deterministic` holds to the last bit: products, attention, and the engine's tokens and logprobs."""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from quire import LLM, SamplingParams
from quire_kernels.check_attention import make_batch, tensors
from quire_kernels.invariant_linear import invariant_linear
from quire_runtime.model.registry import Model

SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "attention_bias": False,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 4096,
    "rope_theta": 1000000,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
MATRICES = [(1024, 4096), (2048, 1024), (3072, 1024), (4096, 6144), (14336, 4096), (1024, 151936), (96, 200)]
"""Inputs and outputs of M-small's products, of two of an 8B model's, and of one that fills no tile."""
COUNTS = [1, 2, 17, 64, 65, 130, 256, 700]


def same(actual: Tensor, expected: Tensor) -> bool:
    return torch.equal(actual.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("shape", MATRICES, ids=str)
def test_a_row_of_a_product_is_the_same_in_every_tile(shape):
    from quire_kernels.invariant_linear_triton import launch, product, tiles

    inputs, outputs = shape
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(COUNTS[-1], inputs, device="cuda", generator=generator).bfloat16()
    weight = (0.02 * torch.randn(outputs, inputs, device="cuda", generator=generator)).bfloat16()
    expected = torch.empty(COUNTS[-1], outputs, dtype=x.dtype, device="cuda")
    product(x, weight, None, expected)
    reference = x.float() @ weight.float().t()
    assert ((expected.float() - reference).abs() <= 0.01 * reference.abs() + 0.01).all()
    for count in COUNTS:
        first = COUNTS[-1] - count
        for begin in {0, first // 2, first}:
            out = torch.empty(count, outputs, dtype=x.dtype, device="cuda")
            product(x[begin : begin + count], weight, None, out)
            assert same(out, expected[begin : begin + count]), f"{count} rows from {begin}"
    for tile in tiles(2):
        out = torch.empty_like(expected)
        launch(x, weight, None, out, tile)
        assert same(out, expected), tile


@pytest.mark.parametrize("shape", MATRICES, ids=str)
def test_faster_products_are_the_invariant_one_for_any_number_of_rows(shape):
    from quire_kernels.equal_products import EqualProducts

    inputs, outputs = shape
    generator = torch.Generator("cuda").manual_seed(0)
    most = 300 if outputs > 100_000 else 1500
    x = torch.randn(most, inputs, device="cuda", generator=generator).bfloat16()
    weight = (0.02 * torch.randn(outputs, inputs, device="cuda", generator=generator)).bfloat16()
    expected = invariant_linear(x, weight)
    product = EqualProducts()
    product.learn(weight, None, most)
    for count in (*range(1, 40), 64, 65, 130, 256, 700, 1024, 1100, most):
        first = max(0, most - count)
        assert same(product(x[first:], weight), expected[first:]), count


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("heads", [(16, 8, 128), (14, 2, 64), (8, 1, 256)], ids=str)
def test_a_query_finds_the_same_as_a_decode_in_a_chunk_and_in_a_whole_prompt(heads, window):
    from quire_kernels.invariant_attention import invariant_attention

    dim = heads[2]
    length = 2500
    whole, blocks = make_batch([(0, length)], 16, torch.device("cuda"))
    q, k_cache, v_cache = tensors(whole, blocks, *heads, torch.bfloat16, torch.device("cuda"))
    expected = invariant_attention(q, k_cache, v_cache, whole, dim**-0.5, window, 1024)
    rng = random.Random(0)
    cuts = [0, *sorted(rng.sample(range(1, length), 6)), length]
    for begin, end in itertools.pairwise(cuts):
        if end - begin > 1:
            chunk, _ = make_batch([(begin, end - begin)], 16, torch.device("cuda"))
            chunk.block_tables[:, :] = whole.block_tables[:, : chunk.block_tables.shape[1]]
            found = invariant_attention(q[begin:end], k_cache, v_cache, chunk, dim**-0.5, window, 1024)
            assert same(found, expected[begin:end]), (begin, end)
    places = [0, 15, 16, 63, 64, 500, 1023, 1024, 1025, 2047, 2048, 2400, length - 1]
    for count in (1, len(places)):
        for start in range(0, len(places), count):
            own = places[start : start + count]
            decodes, _ = make_batch([(place, 1) for place in own], 16, torch.device("cuda"))
            width = decodes.block_tables.shape[1]
            tables = whole.block_tables[:, :width].expand(len(own), width).contiguous()
            found = invariant_attention(
                q[own], k_cache, v_cache, replace(decodes, block_tables=tables), dim**-0.5, window, 1024
            )
            assert same(found, expected[own]), own


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("m-small")
    (directory / "config.json").write_text(json.dumps(SHAPE))
    return directory


@pytest.fixture
def make(small: Path) -> Iterator[Any]:
    """`make(**settings)`: M-small with weights of N(0, 0.02), the same each time."""
    made: list[LLM] = []

    def make(**more: Any) -> LLM:
        usual = {"max_num_seqs": 256, "max_model_len": 2048, "kv_cache_memory": "8Gi"}
        llm = LLM(
            str(small), device="cuda", load_format="dummy", skip_tokenizer_init=True, deterministic=True,
            **{**usual, **more},
        )  # fmt: skip
        refill(llm.engine.loaded.runner.model)
        made.append(llm)
        return llm

    yield make
    made.clear()
    torch.cuda.empty_cache()


def refill(model: Model) -> None:
    generator = torch.Generator("cuda").manual_seed(5)
    for tensor in model.weights.tensors:
        if tensor.dim() > 1:
            tensor.normal_(0, 0.02, generator=generator)
        else:
            tensor.fill_(1)


def prompts_of(count: int) -> list[list[int]]:
    """Of 1 to 600 tokens; every third begins with the same 300."""
    rng = random.Random(3)
    shared = [rng.randrange(1000, 150000) for _ in range(300)]
    found = []
    for index in range(count):
        own = [rng.randrange(1000, 150000) for _ in range(rng.choice([1, 2, 16, 40, 129, 300]))]
        found.append([*shared, *own] if index % 3 == 2 else own)
    return found


def params_of(index: int) -> SamplingParams:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 0, "logprobs": 3},
        {"temperature": 0.8, "seed": 4},
    ]
    kinds += [
        {"temperature": 1.0, "top_p": 0.9, "logprobs": 1},
        {"temperature": 0, "logprobs": 0, "prompt_logprobs": 1},
    ]
    return SamplingParams(max_tokens=24, ignore_eos=True, **kinds[index % len(kinds)])


def answers(llm: LLM, prompts: list[list[int]], which: list[int]) -> dict[int, object]:
    outputs = llm.generate([prompts[i] for i in which], [params_of(i) for i in which], use_tqdm=False)
    return {i: exact(output) for i, output in zip(which, outputs, strict=True)}


def exact(output: Any) -> object:
    choice = output.outputs[0]
    positions = [*(choice.logprobs or []), *(output.prompt_logprobs or [])]
    return list(choice.token_ids), [
        None if place is None else {token: (one.logprob, one.rank) for token, one in place.items()}
        for place in positions
    ]


def test_answers_do_not_depend_on_the_company(make):
    prompts = prompts_of(256)
    llm = make()
    everyone = list(range(256))
    expected = answers(llm, prompts, everyone)
    wrong: list[str] = []

    def compare(name: str, found: dict[int, object]) -> None:
        wrong.extend(f"{name}: {i}" for i, answer in found.items() if answer != expected[i])

    compare("256, prefix hits", answers(llm, prompts, everyone))
    for i in range(0, 40, 3):
        compare("alone, a hit", answers(llm, prompts, [i]))
        llm.reset_prefix_cache()
        compare("alone", answers(llm, prompts, [i]))
    for count in (2, 17, 100):
        llm.reset_prefix_cache()
        compare(f"{count}", answers(llm, prompts, everyone[:count]))
    assert wrong == []


@pytest.mark.parametrize(
    "settings",
    [
        {"max_num_batched_tokens": 300, "enable_prefix_caching": False},
        {"max_num_batched_tokens": 1000, "long_prefill_token_threshold": 77, "enforce_eager": True},
        {"num_gpu_blocks_override": 200, "max_num_seqs": 40, "async_scheduling": False},
    ],
    ids=["chunks", "eager", "preempted"],
)
def test_settings_of_the_scheduler_change_no_bit(make, settings):
    prompts = prompts_of(60)
    everyone = list(range(60))
    expected = answers(make(), prompts, everyone)
    llm = make(**settings)
    assert answers(llm, prompts, everyone) == expected
    if "num_gpu_blocks_override" in settings:
        assert llm.engine.stats.num_preemptions > 0
