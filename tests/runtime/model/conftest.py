"""A model under test with a paged cache whose blocks lie in no order."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quire_kernels.batch import AttentionBatch
from quire_runtime.model.config import ModelConfig
from quire_runtime.model.loader import load_weights
from quire_runtime.model.registry import build_model

BLOCK_SIZE = 8


class PagedModel:
    """Runs a loaded model step by step; each sequence owns `blocks_per_sequence` shuffled blocks."""

    def __init__(
        self,
        directory: Path,
        sequences: int = 1,
        max_model_len: int | None = None,
        blocks_per_sequence: int = 16,
        device: str = "cpu",
    ) -> None:
        config = ModelConfig.from_directory(directory)
        self.model = build_model(config, torch.float32, device, max_model_len)
        load_weights(self.model, directory)
        self.device = torch.device(device)
        blocks = list(range(1, 1 + sequences * blocks_per_sequence))
        random.Random(0).shuffle(blocks)
        self.tables = torch.tensor(blocks, dtype=torch.int32, device=device).view(sequences, blocks_per_sequence)
        shape = (1 + len(blocks), config.num_kv_heads, BLOCK_SIZE, config.head_dim)
        self.kv = [
            (torch.full(shape, 1e4, device=device), torch.full(shape, 1e4, device=device))
            for _ in range(config.num_layers)
        ]
        self.lengths = [0] * sequences

    def step(self, tokens: dict[int, list[int]]) -> dict[int, Tensor]:
        """New tokens of each sequence (single ones come first) -> logits [tokens, vocab_size] of each."""
        with self.device:
            return self._step(tokens)

    def _step(self, tokens: dict[int, list[int]]) -> dict[int, Tensor]:
        order = sorted(tokens, key=lambda sequence: len(tokens[sequence]) > 1)
        positions, slots, starts, lengths = [], [], [0], []
        for sequence in order:
            first = self.lengths[sequence]
            self.lengths[sequence] += len(tokens[sequence])
            for position in range(first, self.lengths[sequence]):
                block = int(self.tables[sequence, position // BLOCK_SIZE])
                positions.append(position)
                slots.append(block * BLOCK_SIZE + position % BLOCK_SIZE)
            starts.append(len(positions))
            lengths.append(self.lengths[sequence])
        batch = AttentionBatch(
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            query_starts=torch.tensor(starts, dtype=torch.int32),
            seq_lens=torch.tensor(lengths, dtype=torch.int32),
            block_tables=self.tables[order],
            num_decodes=sum(len(tokens[sequence]) == 1 for sequence in order),
            query_starts_cpu=starts,
            seq_lens_cpu=lengths,
            block_size=BLOCK_SIZE,
        )
        token_ids = torch.tensor([token for sequence in order for token in tokens[sequence]])
        logits = self.model.compute_logits(self.model.forward(token_ids, self.kv, batch))
        return dict(zip(order, logits.cpu().split([len(tokens[sequence]) for sequence in order]), strict=True))


@pytest.fixture(scope="session")
def paged_model() -> Callable[..., PagedModel]:
    return PagedModel


@pytest.fixture(scope="session")
def expected_logits() -> Callable[[Path, list[int]], Tensor]:
    """Transformers' logits [tokens, vocab_size] for a sequence."""
    loaded: dict[Path, torch.nn.Module] = {}

    def compute(directory: Path, token_ids: list[int]) -> Tensor:
        from transformers import AutoModelForCausalLM

        if directory not in loaded:
            loaded[directory] = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        with torch.no_grad():
            return loaded[directory](torch.tensor([token_ids])).logits[0]

    return compute
