"""From logits to tokens: bias, penalties, masks and noise, each paid for only by steps whose rows ask for it."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire_api.sampling import SamplingParams
from quire_kernels.greedy import likeliest
from quire_kernels.sampling import apply_penalties, sample
from quire_runtime.execute.logprobs import PositionLogprobs, top_logprobs
from quire_runtime.execute.rows import Rows, Wants, Word
from quire_runtime.scheduler.request import Request

POISONED = -2
"""In place of a token: the row's logits held a NaN."""


@dataclass(frozen=True, slots=True)
class Draws:
    """The m rows that draw in this step, on the host and on the device; positions are those of the new tokens."""

    rows_cpu: NDArray[np.int32]
    positions_cpu: NDArray[np.int32]
    rows: Tensor
    positions: Tensor


class Sampler:
    """Draws one token a row and writes it into the row's token table.

    Order, as vLLM's: logprobs of the raw logits, logit_bias, min_tokens, penalties, temperature, min_p, top_k, top_p.
    """

    def __init__(self, tables: Rows, vocab_size: int, is_deterministic: bool = False) -> None:
        """is_deterministic: no bit of what a row draws, or of its logprobs, depends on the rows beside it."""
        self.tables = tables
        self.vocab_size = vocab_size
        self.is_deterministic = is_deterministic
        self._first = torch.zeros(1, dtype=torch.int32, device=tables.tokens.device)

    def draw(self, logits: Tensor, draws: Draws) -> tuple[Tensor, PositionLogprobs | None]:
        """logits [m, vocab_size] (may be changed) -> tokens int32 [m], and the logprobs of the rows that want them."""
        wants = self.tables.wants[draws.rows_cpu]
        any_wants = Wants(int(np.bitwise_or.reduce(wants)))
        if any_wants == Wants(0) and logits.is_cuda:
            drawn = torch.empty(1, len(logits), dtype=torch.int32, device=logits.device)
            likeliest(logits, POISONED, drawn, self._first, draws.rows, draws.positions, self.tables.tokens)
            return drawn[0], None
        if any_wants == Wants(0):
            best, tokens = logits.max(dim=-1)
            return self._record(tokens, best, draws), None
        best = logits.amax(dim=-1)
        raw = asking = None
        if any_wants & Wants.LOGPROBS:
            asking = np.flatnonzero(wants & Wants.LOGPROBS)
            raw = logits[torch.from_numpy(asking).to(logits.device)].float()
        adjusted = self._adjust(logits.float(), draws, wants, any_wants)
        if any_wants & Wants.NOISE:
            params = self.tables.params[draws.rows]
            reals = params.view(torch.float32)
            columns = (
                adjusted,
                reals[:, Word.TEMPERATURE].contiguous(),
                params[:, Word.TOP_K].contiguous(),
                reals[:, Word.TOP_P].contiguous(),
                reals[:, Word.MIN_P].contiguous(),
                params[:, Word.SEED : Word.SEED + 2].contiguous().view(torch.int64).squeeze(1),
                draws.positions.long(),
                params[:, Word.CHOICE].contiguous(),
            )
            if self.is_deterministic:
                tokens = _sample_apart(columns)
            else:
                tokens = sample(*columns, any_filter=bool(any_wants & Wants.FILTER))
        else:
            tokens = adjusted.argmax(dim=-1)
        tokens = self._record(tokens, best, draws)
        if raw is None or asking is None:
            return tokens, None
        counts = [self._params(draws.rows_cpu[i]).logprobs or 0 for i in asking]
        chosen = tokens[torch.from_numpy(asking).to(tokens.device)].clamp_min(0)
        return tokens, top_logprobs(raw, chosen, asking, counts, self.is_deterministic)

    def _record(self, tokens: Tensor, best: Tensor, draws: Draws) -> Tensor:
        is_poisoned = best.isnan()
        # A step already under way may read what is recorded: it must be a token.
        tokens = tokens.int().masked_fill(is_poisoned, 0)
        self.tables.write_tokens(draws.rows, draws.positions, tokens)
        return tokens.masked_fill(is_poisoned, POISONED)

    def _adjust(self, logits: Tensor, draws: Draws, wants: NDArray[np.int32], any_wants: Wants) -> Tensor:
        if any_wants & Wants.BIAS:
            self._add_bias(logits, draws, np.flatnonzero(wants & Wants.BIAS))
        if any_wants & Wants.MIN_TOKENS:
            self._mask_stop_tokens(logits, draws, np.flatnonzero(wants & Wants.MIN_TOKENS))
        if any_wants & Wants.PENALTY:
            self._penalise(logits, draws, np.flatnonzero(wants & Wants.PENALTY))
        return logits

    def _add_bias(self, logits: Tensor, draws: Draws, slots: NDArray[np.intp]) -> None:
        entries = [
            (slot, token, bias)
            for slot in slots.tolist()
            for token, bias in (self._params(draws.rows_cpu[slot]).logit_bias or {}).items()
            if token < self.vocab_size
        ]
        if entries:
            places, tokens, biases = zip(*entries, strict=True)
            where = (torch.tensor(places, device=logits.device), torch.tensor(tokens, device=logits.device))
            logits.index_put_(where, torch.tensor(biases, dtype=logits.dtype, device=logits.device), accumulate=True)

    def _mask_stop_tokens(self, logits: Tensor, draws: Draws, slots: NDArray[np.intp]) -> None:
        rows = draws.rows_cpu[slots]
        outputs = draws.positions_cpu[slots] - self.tables.prompt_lens[rows]
        entries = [
            (slot, token)
            for slot in slots[outputs < self.tables.min_tokens[rows]].tolist()
            for token in self._request(draws.rows_cpu[slot]).stop_token_ids
            if 0 <= token < self.vocab_size
        ]
        if entries:
            places, tokens = zip(*entries, strict=True)
            logits[torch.tensor(places, device=logits.device), torch.tensor(tokens, device=logits.device)] = -torch.inf

    def _penalise(self, logits: Tensor, draws: Draws, slots: NDArray[np.intp]) -> None:
        index = torch.from_numpy(slots).to(logits.device)
        rows, ends = draws.rows[index], draws.positions[index].unsqueeze(1)
        params = self.tables.params[rows]
        reals = params.view(torch.float32)
        longest = int(draws.positions_cpu[slots].max())
        tokens = self.tables.tokens[rows, :longest].long()
        places = torch.arange(longest, device=logits.device)
        is_prompt = places < params[:, Word.PROMPT_LEN].unsqueeze(1)
        nowhere = self.vocab_size
        counts = torch.zeros(len(slots), nowhere + 1, dtype=torch.float32, device=logits.device)
        prompt = torch.zeros_like(counts)
        is_output = ~is_prompt & (places < ends)
        counts.scatter_add_(1, tokens.where(is_output, nowhere), torch.ones_like(tokens, dtype=torch.float32))
        prompt.scatter_(1, tokens.where(is_prompt, nowhere), 1.0)
        chosen = logits[index]
        apply_penalties(
            chosen,
            counts[:, :nowhere],
            prompt[:, :nowhere] > 0,
            reals[:, Word.PRESENCE].contiguous(),
            reals[:, Word.FREQUENCY].contiguous(),
            reals[:, Word.REPETITION].contiguous(),
        )
        logits[index] = chosen

    def _request(self, row: int) -> Request:
        request = self.tables.requests[row]
        assert request is not None
        return request

    def _params(self, row: int) -> SamplingParams:
        return self._request(row).params


def _sample_apart(columns: tuple[Tensor, ...]) -> Tensor:
    """`sample` whose rounding in a row does not depend on the others: on a GPU each row has a program of its own, and
    the one that can filter may round otherwise; on a CPU each row is a call of its own."""
    if columns[0].is_cuda:
        return sample(*columns, any_filter=True)
    rows = range(len(columns[0]))
    return torch.cat([sample(*(column[row : row + 1].clone() for column in columns)) for row in rows])
