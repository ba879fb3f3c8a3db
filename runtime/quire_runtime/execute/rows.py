"""The fixed tables of the device: a request owns one row for life, and each step sends only what changed."""

from enum import IntEnum, IntFlag

import numpy as np
import torch
from torch import Tensor

from quire_runtime.scheduler.plan import Admission
from quire_runtime.scheduler.request import Request

PARAM_WORDS = 12


class Word(IntEnum):
    """Where a sampling parameter lies in a row's PARAM_WORDS."""

    TEMPERATURE = 0
    TOP_K = 1
    TOP_P = 2
    MIN_P = 3
    PRESENCE = 4
    FREQUENCY = 5
    REPETITION = 6
    CHOICE = 7
    SEED = 8
    """Two words, at an even place: 64 bits."""
    PROMPT_LEN = 10


class Wants(IntFlag):
    """What a row asks of the sampler beyond the likeliest token."""

    NOISE = 1
    FILTER = 2
    PENALTY = 4
    BIAS = 8
    MIN_TOKENS = 16
    LOGPROBS = 32
    PROMPT_LOGPROBS = 64


class Rows:
    """Tables of `max_num_seqs` rows and a spare one, that padding uses: its block table names block 0 only.

    tokens  int32 [rows + 1, max_model_len + 1]  every token known, drawn ones included
    blocks  int32 [rows + 1, max_blocks]         block table
    params  int32 [rows + 1, PARAM_WORDS]        sampling parameters; floats and the 64-bit seed by their bits
    counting int32 [rows + 2]                    0, 1, 2, ...

    The numpy mirrors (`wants`, `prompt_lens`, `min_tokens`, `requests`) let the host decide what a step needs without
    asking the device.
    """

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device) -> None:
        self.block_size = block_size
        self.width = max_model_len + 1
        self.max_blocks = -(-self.width // block_size)
        self.spare = max_num_seqs
        shape = max_num_seqs + 1
        self.tokens = torch.zeros(shape, self.width, dtype=torch.int32, device=device)
        self.blocks = torch.zeros(shape, self.max_blocks, dtype=torch.int32, device=device)
        self.params = torch.zeros(shape, PARAM_WORDS, dtype=torch.int32, device=device)
        self.counting = torch.arange(shape + 1, dtype=torch.int32, device=device)
        self.wants = np.zeros(shape, np.int32)
        self.prompt_lens = np.zeros(shape, np.int32)
        self.min_tokens = np.zeros(shape, np.int32)
        self.requests: list[Request | None] = [None] * shape
        self.choices = np.zeros(shape, np.int32)

    def admit(self, admissions: list[Admission]) -> list[np.ndarray]:
        """Take the admissions into the mirrors; returns what `write` needs on the device.

        Arrays: param rows [k], params [k, PARAM_WORDS], flat token places [t], tokens [t].
        """
        if not admissions:
            empty = np.empty(0, np.int32)
            return [empty, np.empty((0, PARAM_WORDS), np.int32), empty, empty]
        params = np.stack([self._admit(admission) for admission in admissions])
        tokens = [admission.token_ids for admission in admissions]
        places = [
            np.arange(admission.row * self.width, admission.row * self.width + len(ids), dtype=np.int32)
            for admission, ids in zip(admissions, tokens, strict=True)
        ]
        rows = np.array([admission.row for admission in admissions], np.int32)
        return [rows, params, np.concatenate(places), np.concatenate(tokens)]

    def write(self, param_rows: Tensor, params: Tensor, places: Tensor, tokens: Tensor) -> None:
        """Scatter staged admissions into the tables."""
        if len(param_rows):
            self.params[param_rows] = params
            self.tokens.view(-1)[places] = tokens

    def write_blocks(self, places: Tensor, blocks: Tensor) -> None:
        """Scatter block-table entries; places are flat: row * max_blocks + column."""
        if len(places):
            self.blocks.view(-1)[places] = blocks

    def write_tokens(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> None:
        """Record drawn tokens, so that the next step finds its input here without asking the host."""
        self.tokens[rows, positions] = tokens

    def _admit(self, admission: Admission) -> np.ndarray:
        row, request = admission.row, admission.request
        asked = request.params
        words = np.zeros(PARAM_WORDS, np.int32)
        reals = words.view(np.float32)
        reals[Word.TEMPERATURE], reals[Word.TOP_P], reals[Word.MIN_P] = asked.temperature, asked.top_p, asked.min_p
        reals[Word.PRESENCE], reals[Word.FREQUENCY] = asked.presence_penalty, asked.frequency_penalty
        reals[Word.REPETITION] = asked.repetition_penalty
        words[Word.TOP_K], words[Word.CHOICE] = asked.top_k, admission.choice
        words[Word.PROMPT_LEN] = admission.num_prompt_tokens
        words[Word.SEED : Word.SEED + 2].view(np.int64)[0] = request.seed
        self._mirror(row, request, admission)
        return words

    def _mirror(self, row: int, request: Request, admission: Admission) -> None:
        asked = request.params
        wants = Wants(0)
        if not asked.is_greedy:
            wants |= Wants.NOISE
            if asked.top_k > 0 or asked.top_p < 1 or asked.min_p > 0:
                wants |= Wants.FILTER
        if asked.presence_penalty or asked.frequency_penalty or asked.repetition_penalty != 1:
            wants |= Wants.PENALTY
        if asked.logit_bias:
            wants |= Wants.BIAS
        if asked.min_tokens > 0 and request.stop_token_ids:
            wants |= Wants.MIN_TOKENS
        if asked.logprobs is not None:
            wants |= Wants.LOGPROBS
        if asked.prompt_logprobs is not None and admission.choice == 0:
            wants |= Wants.PROMPT_LOGPROBS
        self.wants[row] = wants
        self.prompt_lens[row] = admission.num_prompt_tokens
        self.min_tokens[row] = asked.min_tokens
        self.requests[row] = request
        self.choices[row] = admission.choice
