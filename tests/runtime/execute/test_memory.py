"""Budgets of memory, by their arithmetic."""

import pytest
import torch

from quire_runtime.config import EngineConfig, InvalidConfig
from quire_runtime.execute import memory
from quire_runtime.execute.kvcache import block_bytes
from quire_runtime.execute.memory import DoesNotFit, plan_memory
from quire_runtime.model.config import ModelConfig

CPU = torch.device("cpu")
GiB = 2**30


@pytest.fixture
def facts(tiny_model_dir) -> ModelConfig:
    """3 layers, 2 KV heads, head_dim 16, 512 positions: a block of 16 tokens in fp32 has 12,288 bytes."""
    return ModelConfig.from_directory(tiny_model_dir("llama"))


@pytest.fixture
def available(monkeypatch):
    """Sets the memory that the machine seems to have."""
    return lambda size: monkeypatch.setattr(memory, "available_memory", lambda: size)


def plan(facts, **settings):
    config = EngineConfig.of(model="m", max_num_seqs=4, **settings)
    return plan_memory(config, facts, torch.float32, CPU, weights=1000, workspace=0)


def test_a_block_holds_keys_and_values_of_all_layers():
    assert block_bytes(3, 2, 16, 16, torch.float32) == 3 * 2 * 2 * 16 * 16 * 4
    assert block_bytes(3, 2, 16, 16, torch.bfloat16) == 3 * 2 * 2 * 16 * 16 * 2


def test_no_more_blocks_than_all_rows_can_fill(facts, available):
    available(64 * GiB)
    # A row of 512 tokens (and the one drawn last) has 33 blocks; block 0 is nobody's.
    assert plan(facts).num_blocks == 4 * 33 + 1
    assert plan(facts).max_model_len == 512


def test_a_quarter_of_what_is_available_bounds_the_cache(facts, available):
    available(4 * 100 * 12288)
    assert plan(facts).num_blocks == 100


def test_an_automatic_window_shrinks_to_what_fits(facts, available):
    available(4 * 10 * 12288)
    # 9 usable blocks of 16 tokens, one token of which is the one drawn last.
    assert plan(facts).max_model_len == 143


def test_a_window_that_does_not_fit_is_refused_with_the_arithmetic(facts, available):
    available(4 * 10 * 12288)
    with pytest.raises(DoesNotFit, match=r"one sequence of 512 tokens .* Lower max_model_len"):
        plan(facts, max_model_len=512)
    with pytest.raises(DoesNotFit, match="model's own limit of 512"):
        plan(facts, max_model_len=513)


def test_sizes_given_by_hand_are_taken(facts, available):
    available(64 * GiB)
    assert plan(facts, num_gpu_blocks_override=7).num_blocks == 7
    assert plan(facts, kv_cache_memory="1200Ki").num_blocks == 100
    assert "99 blocks of 16 = 1584 tokens" in plan(facts, kv_cache_memory="1200Ki").table()


@pytest.mark.parametrize("settings", [{"kv_cache_memory": "900Ti"}, {"num_gpu_blocks_override": 10**12}])
def test_more_than_there_is_is_refused_also_by_hand(facts, available, settings):
    available(1 * GiB)
    with pytest.raises(DoesNotFit, match=r"beside the weights there are 1\.00 GiB"):
        plan(facts, **settings)


@pytest.mark.parametrize(
    ("text", "size"), [("8Gi", 8 * GiB), ("8GiB", 8 * GiB), ("1.5Mi", 3 * 2**19), ("500M", 500 * 10**6), (77, 77)]
)
def test_quantities(text, size):
    assert EngineConfig.of(model="m", kv_cache_memory=text).kv_cache_memory == size


@pytest.mark.parametrize(
    ("text", "length"), [("32k", 32000), ("32K", 32768), ("100", 100), (5, 5), ("auto", "auto"), (-1, "auto")]
)
def test_lengths(text, length):
    assert EngineConfig.of(model="m", max_model_len=text).max_model_len == length


@pytest.mark.parametrize(
    "settings",
    [{"kv_cache_memory": "much"}, {"max_model_len": "long"}, {"max_model_len": 0}, {"max_num_seqs": 0}, {"seed": "x"}],
)
def test_bad_settings_are_named(settings):
    with pytest.raises(InvalidConfig, match=next(iter(settings))):
        EngineConfig.of(model="m", **settings)
