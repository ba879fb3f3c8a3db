"""Memory that is counted, by its arithmetic, and against what the kernels' own plans take."""

import pytest
import torch

from quire_kernels import fresh_attention
from quire_kernels.batch import AttentionBatch
from quire_kernels.invariant_attention import split_for
from quire_runtime.execute.workspace import decode_sums, padded_prompts
from quire_runtime.model.config import ModelConfig


@pytest.fixture
def facts(tiny_model_dir) -> ModelConfig:
    """hidden 64, 4 query and 2 KV heads of dimension 16."""
    return ModelConfig.from_directory(tiny_model_dir("llama"))


def test_sums_of_decodes_are_those_of_one_step_without_graphs(facts):
    # 4,096 tokens and the one drawn last take 257 blocks of 16 keys, so 5 splits of 1,024.
    each = 4 * (4 * 5 * (16 + 2) + 2)
    assert split_for(4096) == 1024
    assert decode_sums(facts, 8, 4096, 16, graphs=False) == 8 * each


def test_sums_of_decodes_are_kept_by_every_graph(facts):
    each = 4 * (4 * 1 * (16 + 2) + 2)
    # Decodes are recorded for 1, 2, 4, 8, 16 and 20 sequences, steps with prompts for 1, 4, 16 and 20.
    assert decode_sums(facts, 20, 512, 16, graphs=True) == (20 + (1 + 2 + 4 + 8 + 16 + 20) + (1 + 4 + 16 + 20)) * each


def test_splits_do_not_grow_with_very_long_windows(facts):
    short, long = (decode_sums(facts, 8, window, 16, graphs=True) for window in (32767, 131071))
    assert short == long


def test_prompts_too_short_for_cudnn_are_not_padded(facts):
    assert padded_prompts(facts, torch.bfloat16, 2047) == 2047 * (2 * 64 + 128 + 64) * 2


@pytest.mark.parametrize("lengths", [[2049], [2049] * 4, [2049, 3000, 4095], [8192], [2561] * 16, [32767], [2049] * 40])
def test_padding_is_never_more_than_what_is_counted(facts, lengths):
    starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    empty = torch.empty(0)
    batch = AttentionBatch(empty, empty, empty, empty, empty, 0, starts, lengths, 16)
    prompts, rest = fresh_attention.divide(batch, None)
    assert not rest
    most = max(0 if part.source is None else len(part.source) for part in prompts)
    tokens = sum(lengths)
    counted = padded_prompts(facts, torch.bfloat16, tokens) - tokens * (2 * 64 + 128 + 64) * 2
    assert counted >= most * (128 + 64) * 2
