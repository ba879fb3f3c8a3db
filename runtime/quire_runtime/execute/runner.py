"""Carries out step plans: writes the rows, builds the inputs, runs the model, draws tokens, sends them home."""

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire_kernels import inputs as kernels
from quire_kernels.batch import AttentionBatch, SharedPrefix
from quire_kernels.greedy import likeliest
from quire_runtime.execute.graphs import Decoded, DecodeGraphs, Slots
from quire_runtime.execute.inputs import decode_inputs, mixed_inputs
from quire_runtime.execute.kvcache import KVCache
from quire_runtime.execute.logprobs import PositionLogprobs, top_logprobs
from quire_runtime.execute.mixed_graphs import MixedGraphs, MixedSlots, Replayed
from quire_runtime.execute.output import OutputCopy, PendingStep
from quire_runtime.execute.recordings import GraphMemory
from quire_runtime.execute.rows import Rows, Wants
from quire_runtime.execute.sampler import POISONED, Draws, Sampler
from quire_runtime.execute.staging import Staging
from quire_runtime.scheduler.plan import StepPlan

PROMPT_LOGPROB_POSITIONS = 512
"""Prompt positions whose logits are computed at once: bounds the memory of [positions, vocabulary] in float32."""

NONE_SHARED = (np.empty(0, np.int32), np.empty(0, np.int32))
"""The arrays of a plan without shared blocks."""


class Model(Protocol):
    """What the runner asks of a model; quire_runtime.model builds them."""

    def forward(self, token_ids: Tensor, kv: list[tuple[Tensor, Tensor]], batch: AttentionBatch) -> Tensor: ...

    def compute_logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor: ...

    def rehearse_products(self) -> None: ...


class Runner:
    """Owns the device: the rows, the KV cache and the model.

    `launch` returns as soon as the work is queued; on a CPU that is when it is done. At most `depth` launched steps may
    be unread.
    """

    def __init__(
        self,
        model: Model,
        kv: KVCache,
        tables: Rows,
        vocab_size: int,
        device: torch.device,
        depth: int,
        graphs: bool,
        is_deterministic: bool = False,
    ) -> None:
        self.model = model
        self.kv = kv
        self.tables = tables
        self.device = device
        self._staging = Staging(device, depth + 1)
        self._output = OutputCopy(device)
        self._is_deterministic = is_deterministic
        self._sampler = Sampler(tables, vocab_size, is_deterministic)
        self._graphs: DecodeGraphs | None = None
        self._mixed: MixedGraphs | None = None
        if graphs and device.type == "cuda":
            memory = GraphMemory(device)
            self._graphs = DecodeGraphs(self._decode_slots, tables, tables.spare, depth, memory)
            self._mixed = MixedGraphs(self._mixed_slots, tables, self._graphs.sizes[-1], depth, memory)
            self._logits = torch.empty(self._graphs.sizes[-1], vocab_size, dtype=kv.data.dtype, device=device)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Queue one step on the device; never waits for it."""
        decoded = self._graphs.run(plan) if self._graphs is not None else None
        if decoded is not None:
            return self._draw(plan, decoded)
        starts = np.zeros(len(plan.rows) + 1, np.int32)
        np.cumsum(plan.query_lens, out=starts[1:])
        draw_slots = np.flatnonzero(plan.samples)
        draw_positions = (plan.context_lens + plan.query_lens)[draw_slots]
        draw_rows = plan.rows[draw_slots]
        shared_lens, shared_owner = NONE_SHARED if plan.shared is None else plan.shared.arrays()
        rows, contexts, lens, query_starts, last, drawn_rows, positions, drawn, own_lens, owner, *writes = (
            self._staging.send(
                [
                    plan.rows,
                    plan.context_lens,
                    plan.query_lens,
                    starts,
                    starts[1:][draw_slots] - 1,
                    draw_rows,
                    draw_positions,
                    draw_slots.astype(np.int32),
                    shared_lens,
                    shared_owner,
                    plan.table_rows * self.tables.max_blocks + plan.table_columns,
                    plan.table_blocks,
                    plan.copy_sources,
                    plan.copy_targets,
                    *self.tables.admit(plan.admissions),
                ]
            )
        )
        self._write(writes)
        logits: Tensor | None
        prompt: list[tuple[int, int, PositionLogprobs]] = []
        if self._mixed is not None and not (self.tables.wants[plan.rows] & Wants.PROMPT_LOGPROBS).any():
            replayed = self._mixed.run(plan, starts)
            if replayed is not None:
                draws = Draws(draw_rows, draw_positions, drawn_rows, positions)
                return self._draw_some(plan, replayed, draw_slots, drawn, draws)
        if len(plan.rows) == plan.num_decodes == len(draw_slots):
            logits = self._decode_step(plan, rows, contexts)
        else:
            seq_lens = (plan.context_lens + plan.query_lens).tolist()
            shared = None if plan.shared is None else SharedPrefix(own_lens, owner)
            token_ids, batch = mixed_inputs(
                self.tables, rows, contexts, lens, query_starts, starts.tolist(), seq_lens, plan.num_decodes, shared
            )
            hidden = self.model.forward(token_ids, self.kv.layers, batch)
            prompt = self._prompt_logprobs(plan, starts, hidden)
            logits = self.model.compute_logits(hidden.index_select(0, last)) if len(draw_slots) else None
        if logits is None:
            tokens, logprobs = torch.empty(0, dtype=torch.int32, device=self.device), None
        else:
            tokens, logprobs = self._sampler.draw(logits, Draws(draw_rows, draw_positions, drawn_rows, positions))
        tensors = [tokens]
        for asked in (logprobs, *(chunk for _, _, chunk in prompt)):
            if asked is not None:
                tensors += asked.tensors
        return PendingStep(len(plan.rows), draw_slots, logprobs, prompt, self._output.start(tensors))

    def _draw(self, plan: StepPlan, decoded: Decoded) -> PendingStep:
        """After a replayed graph: its tokens are the draws, unless a row asks for more than the likeliest one."""
        slots = np.arange(len(plan.rows))
        tokens, logprobs = decoded.tokens, None
        if self.tables.wants[plan.rows].any():
            draws = Draws(plan.rows, plan.context_lens + 1, decoded.rows, decoded.positions)
            tokens, logprobs = self._sampler.draw(decoded.logits, draws)
        tensors = [tokens, *(logprobs.tensors if logprobs is not None else [])]
        return PendingStep(len(plan.rows), slots, logprobs, [], self._output.start(tensors))

    def _draw_some(
        self, plan: StepPlan, replayed: Replayed, draw_slots: NDArray[np.intp], drawn: Tensor, draws: Draws
    ) -> PendingStep:
        """The same where only the sequences of draw_slots (on the device: `drawn`) draw."""
        tokens, logits, logprobs = replayed.tokens, replayed.logits, None
        if len(draw_slots) < len(plan.rows):
            tokens, logits = tokens.index_select(0, drawn), logits.index_select(0, drawn)
        if self.tables.wants[draws.rows_cpu].any():
            tokens, logprobs = self._sampler.draw(logits, draws)
        tensors = [tokens, *(logprobs.tensors if logprobs is not None else [])]
        return PendingStep(len(plan.rows), draw_slots, logprobs, [], self._output.start(tensors))

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run decodes and a short prefill on the spare row, so that no request waits for a kernel's compilation."""
        if self.device.type == "cuda":
            from quire_kernels.together import compiled_together

            with compiled_together(self.device):
                self._run_padding()
                if self._is_deterministic:
                    self.model.rehearse_products()
                if self._graphs is not None:
                    self._graphs.rehearse()
                if self._mixed is not None:
                    self._mixed.rehearse()
        self._run_padding()

    @torch.inference_mode()
    def capture_graphs(self) -> None:
        """Record the first graphs, where there are to be any; after `warm_up`."""
        if self._graphs is not None:
            self._graphs.warm_up()
        if self._mixed is not None:
            self._mixed.warm_up()

    @torch.inference_mode()
    def prepare(self) -> bool:
        """Record one more graph for steps to come (tens of milliseconds); False if there is none, or no memory."""
        if self._graphs is None or self._mixed is None:
            return False
        decodes, mixed = self._graphs.recordings, self._mixed.recordings
        try:
            return decodes.record_wished() or mixed.record_wished() or decodes.record_rest() or mixed.record_rest()
        except torch.OutOfMemoryError:
            return False

    def _run_padding(self) -> None:
        spare = torch.full((1,), self.tables.spare, dtype=torch.int32, device=self.device)
        zero = torch.zeros_like(spare)
        self._decode(spare, zero, zero - 1, [1], 1)
        length = min(16, self.tables.width - 1)
        lens = torch.full_like(spare, length)
        starts = torch.cat((zero, lens))
        token_ids, batch = mixed_inputs(self.tables, spare, zero, lens, starts, [0, length], [length], 0)
        self.model.forward(token_ids, self.kv.layers, batch)

    @torch.inference_mode()
    def scrub(self, rows: NDArray[np.int32]) -> None:
        """Clear what is not a number from the blocks of these rows: attention multiplies even masked values."""
        blocks = self.tables.blocks[torch.from_numpy(rows).to(self.device).long()].unique().long()
        cleaned = self.kv.data.index_select(2, blocks).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self.kv.data.index_copy_(2, blocks, cleaned)

    def _write(self, writes: list[Tensor]) -> None:
        table_places, table_blocks, copy_sources, copy_targets, param_rows, params, token_places, tokens = writes
        self.tables.write(param_rows, params, token_places, tokens)
        self.tables.write_blocks(table_places, table_blocks)
        if len(copy_sources):
            self.kv.copy_blocks(copy_sources, copy_targets)

    def _decode_step(self, plan: StepPlan, rows: Tensor, contexts: Tensor) -> Tensor:
        seq_lens = (plan.context_lens + 1).tolist()
        columns = -(-max(seq_lens) // self.tables.block_size)
        hidden, _ = self._decode(rows, contexts, torch.full_like(rows, -1), seq_lens, columns)
        return self.model.compute_logits(hidden)

    def _decode(
        self,
        rows: Tensor,
        contexts: Tensor,
        new_blocks: Tensor,
        seq_lens: list[int],
        num_columns: int,
        shared: SharedPrefix | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [n, hidden] and lengths int32 [n] of the sequences, the query token included."""
        token_ids, batch = decode_inputs(self.tables, rows, contexts, new_blocks, seq_lens, num_columns, shared)
        return self.model.forward(token_ids, self.kv.layers, batch), batch.seq_lens

    def _decode_slots(self, slots: Slots, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """A decode as graphs record it: `tokens` and the rows' token tables take the likeliest ones."""
        size = len(slots.rows)
        lens = [self.tables.width - 1] * size
        hidden, seq_lens = self._decode(
            slots.rows, slots.contexts, slots.new_blocks, lens, self.tables.max_blocks, slots.shared
        )
        logits = self.model.compute_logits(hidden, out=self._logits[:size])
        likeliest(logits, POISONED, tokens, slots.turn, slots.rows, seq_lens, self.tables.tokens)
        return logits, seq_lens

    def _mixed_slots(self, slots: MixedSlots, tokens: Tensor, num_tokens: int, has_decodes: bool) -> Tensor:
        """A step with prompts as graphs record it; `tokens` and the draw rows' token tables take the likeliest ones."""
        tables, n = self.tables, len(slots.rows)
        made = kernels.mixed_inputs(
            tables.tokens,
            tables.blocks,
            slots.rows,
            slots.contexts,
            slots.starts,
            num_tokens,
            tables.max_blocks,
            tables.block_size,
        )
        prefills = AttentionBatch(
            positions=made.positions,
            slots=made.slots,
            query_starts=made.prefill_starts,
            seq_lens=made.seq_lens,
            block_tables=made.block_tables,
            num_decodes=0,
            query_starts_cpu=[0] * n + [num_tokens],
            seq_lens_cpu=[tables.width - 1] * n,
            block_size=tables.block_size,
        )
        decodes = replace(
            prefills,
            query_starts=tables.counting[: n + 1],
            seq_lens=made.decode_lens,
            num_decodes=n,
            query_starts_cpu=list(range(n + 1)),
            step_work={},
        )
        batch = replace(prefills, parts=(decodes, prefills)) if has_decodes else prefills
        hidden = self.model.forward(made.token_ids, self.kv.layers, batch).index_select(0, made.last)
        logits = self.model.compute_logits(hidden, out=self._logits[:n])
        likeliest(logits, POISONED, tokens, slots.turn, slots.draw_rows, slots.draw_positions, tables.tokens)
        return logits

    def _prompt_logprobs(
        self, plan: StepPlan, starts: NDArray[np.int32], hidden: Tensor
    ) -> list[tuple[int, int, PositionLogprobs]]:
        """Of each chunk whose request asks: position p's hidden state judges prompt token p + 1."""
        chunks = []
        for slot in np.flatnonzero(self.tables.wants[plan.rows] & Wants.PROMPT_LOGPROBS).tolist():
            row, context = int(plan.rows[slot]), int(plan.context_lens[slot])
            request = self.tables.requests[row]
            assert request is not None
            count = min(int(plan.query_lens[slot]), int(self.tables.prompt_lens[row]) - 1 - context)
            for done in range(0, max(count, 0), PROMPT_LOGPROB_POSITIONS):
                size = min(PROMPT_LOGPROB_POSITIONS, count - done)
                first = int(starts[slot]) + done
                logits = self.model.compute_logits(hidden[first : first + size]).float()
                begin = context + done + 1
                targets = self.tables.tokens[row, begin : begin + size]
                wanted = [request.params.prompt_logprobs or 0] * size
                values = top_logprobs(logits, targets, np.arange(size), wanted, self._is_deterministic)
                chunks.append((request.handle, begin, values))
        return chunks
