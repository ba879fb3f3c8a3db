"""Budgets of memory, by their arithmetic."""

import json

import pytest
import torch

from quire_runtime.config import EngineConfig, InvalidConfig
from quire_runtime.engine.load import load
from quire_runtime.execute import memory
from quire_runtime.execute.kvcache import block_bytes
from quire_runtime.execute.memory import available_memory, plan_memory, remarks
from quire_runtime.model.config import ModelConfig
from quire_runtime.model.errors import DoesNotFit

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


@pytest.fixture
def long_facts(tiny_model_dir) -> ModelConfig:
    """The same with 4,096 positions."""
    return ModelConfig.from_directory(tiny_model_dir("llama", max_position_embeddings=4096))


def test_an_automatic_window_shrinks_to_what_fits_and_says_so(long_facts, available):
    available(4 * 100 * 12288)
    # 99 usable blocks of 16 tokens, one token of which is the one drawn last.
    made = plan(long_facts)
    assert made.max_model_len == 1583
    [remark] = remarks(EngineConfig.of(model="m"), long_facts, made)
    assert remark.startswith("the window is 1583 of the model's 4096 tokens")
    assert remarks(EngineConfig.of(model="m", max_model_len=1583), long_facts, made) == []


def test_an_automatic_window_does_not_shrink_to_a_toy(long_facts, facts, available):
    available(4 * 10 * 12288)
    with pytest.raises(
        DoesNotFit, match=r"one sequence of 1024 tokens, the least that auto takes.*by hand, raise kv_c"
    ):
        plan(long_facts)
    with pytest.raises(DoesNotFit, match=r"one sequence of 512 tokens 0\.00"):
        plan(facts)
    assert plan(long_facts, max_model_len=143).max_model_len == 143


def test_weights_that_the_machine_has_no_memory_for_are_refused_before_they_are_read(tiny_model_dir, available):
    available(1000)
    with pytest.raises(
        DoesNotFit, match=r"weights need 0\.0 GiB, but 0\.0 GiB of memory are available\. Use a machine"
    ):
        load(EngineConfig.of(model=str(tiny_model_dir("llama")), device="cpu"))


def test_a_model_that_no_machine_can_hold_is_refused(tiny_model_dir, available, tmp_path):
    facts = json.loads((tiny_model_dir("llama") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**facts, "vocab_size": 2**24, "hidden_size": 2**20}))
    huge = EngineConfig.of(model=str(tmp_path), device="cpu")
    # Embedding and head alone: 2 x 2^44 parameters of 4 bytes.
    with pytest.raises(DoesNotFit, match=r"weights need \d{6}\.\d GiB, but \d+\.\d GiB of memory are available"):
        load(huge)
    available(2**60)
    with pytest.raises(DoesNotFit, match=r"during the start \(weights; .*can't allocate.*Lower kv_cache_memory"):
        load(huge)


def test_the_bound_of_a_container_counts_and_files_it_has_read_do_not(tmp_path):
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    assert available_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("6000000\n")
    assert available_memory(tmp_path) == 8000 * 1024
    (group / "memory.max").write_text("7000000\n")
    assert available_memory(tmp_path) == 1_000_000
    (group / "memory.stat").write_text("anon 1500000\nfile 4500000\ninactive_file 3000000\nactive_file 500000\n")
    assert available_memory(tmp_path) == 4_500_000


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
