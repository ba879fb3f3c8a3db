"""Who runs next: continuous batching within one budget of tokens, on plain integers."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quire_runtime.kv.hot import HitBlocks
from quire_runtime.kv.prefix import PrefixListener
from quire_runtime.kv.shared import SharedPrefixes
from quire_runtime.kv.tables import EMPTY, BlockTables
from quire_runtime.scheduler.budget import mixed_budget, share_budget
from quire_runtime.scheduler.config import SchedulerConfig
from quire_runtime.scheduler.draft import StepDraft
from quire_runtime.scheduler.errors import BadResume, Draining, EmptyPrompt, KVTooSmall, PromptTooLong, QueueFull
from quire_runtime.scheduler.plan import Admission, Ints, StepOutputs, StepPlan
from quire_runtime.scheduler.request import FinishReason, Request
from quire_runtime.scheduler.rows import RunningRows
from quire_runtime.scheduler.sequence import Family, Sequence, first_rank
from quire_runtime.scheduler.waiting import WaitingQueue


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """num_running, num_waiting: sequences. kv_blocks_used: held ones. kv_waste_ratio: slots unused / allocated.

    num_preemptions, prefix_queries_tokens (prompt tokens looked up) and prefix_hits_tokens (those found) only grow.
    """

    num_running: int
    num_waiting: int
    kv_blocks_total: int
    kv_blocks_used: int
    kv_waste_ratio: float
    num_preemptions: int
    prefix_queries_tokens: int
    prefix_hits_tokens: int


@dataclass(frozen=True, slots=True)
class _Flight:
    """A planned step whose tokens are not known yet, and who owned its rows."""

    plan: StepPlan
    epochs: NDArray[np.int64]


class Scheduler:
    """Turns requests into steps, and the tokens of steps into answers.

    Each step serves running sequences first, then waiting ones, by rank (priority, arrival, choice). A prompt is
    computed in chunks as the budget allows, beside the decodes of others. When blocks run out, the running sequence of
    the highest rank gives up its row and blocks and waits to be computed anew; what steps in flight draw for it is
    dropped and drawn again, the same, for noise depends only on seed, choice and position. A waiting sequence is
    admitted only if all its known tokens fit beside one more block for every running sequence, unless nothing runs.

    `plan` may be called again before `update` of the plan before it (any depth; updates come in the order of plans).
    Rows and blocks of an ended sequence are reused at once: the device carries steps out in order, and results that a
    step in flight brings for a former owner of a row are ignored.

    model_revision: first field of every prefix key.
    """

    def __init__(self, config: SchedulerConfig, model_revision: str, listener: PrefixListener | None = None) -> None:
        self.config = config
        self._rows = RunningRows(config.max_num_seqs, config.max_model_len)
        self._tables = BlockTables(
            config.max_num_seqs,
            config.max_model_len,
            config.block_size,
            config.num_blocks,
            model_revision,
            enable_prefix_caching=config.enable_prefix_caching,
            listener=listener,
        )
        self._shared = SharedPrefixes(self._tables)
        self._waiting = WaitingQueue()
        self._families: dict[int, Family] = {}
        self._unspawned: dict[int, Family] = {}
        self._flights: deque[_Flight] = deque()
        self._num_queued = 0
        self._arrivals = 0
        self._num_steps = 0
        self._is_draining = False
        self._num_preemptions = 0
        self._prefix_queries_tokens = 0
        self._prefix_hits_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether a request is alive or a step in flight."""
        return bool(self._families or self._flights)

    @property
    def has_room(self) -> bool:
        """Whether one more sequence could run: a row is free, and nobody waits for it."""
        return not self._waiting and self._rows.num_unused > 0

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            Draining, QueueFull, EmptyPrompt, PromptTooLong, KVTooSmall, BadResume: it is refused; nothing changed.
            ValueError: a live request has the same handle.
        """
        if request.handle in self._families:
            raise ValueError(f"handle {request.handle} is in use")
        end = self._check(request)
        family = Family(request, end)
        rank = first_rank(request.priority, self._arrivals)
        tokens = np.asarray(request.token_ids, np.int32)
        for choice in range(request.params.n):
            if choice in request.ended:
                continue
            chain = self._tables.chain(request.cache_salt)
            family.sequences[choice] = Sequence(family, choice, rank + choice, tokens, chain)
        self._arrivals += 1
        self._num_queued += 1
        self._families[request.handle] = family
        if not request.is_resumed:
            self._wait(family.sequences[0])
            return
        # As after a preemption: what was put out is known, and computed anew with the prompt.
        family.is_spawned = True
        for choice, sequence in family.sequences.items():
            sequence.tokens = np.concatenate((tokens, np.array(request.outputs[choice], np.int32)))
            self._wait(sequence)

    def abort(self, handle: int, choice: int | None = None) -> list[int]:
        """End a request, or one choice of it, wherever it stands; steps in flight no longer count for it.

        Returns the choices ended by this call, which no later `update` mentions: empty if there are none.
        """
        family = self._families.get(handle)
        if family is None:
            return []
        ended = [sequence for sequence in family.sequences.values() if choice in (None, sequence.choice)]
        for sequence in ended:
            if sequence.row >= 0:
                self._vacate(sequence.row)
            elif sequence.is_waiting:
                self._waiting.discard(sequence)
            self._forget(sequence)
        if family.sequences and 0 not in family.sequences:
            self._spawn(family)
        return [sequence.choice for sequence in ended]

    def drain(self) -> None:
        """Refuse new requests from now on; those taken are finished."""
        self._is_draining = True

    def reset_prefix_cache(self) -> bool:
        """Forget every cached prefix; False, and nothing is forgotten, while sequences hold blocks."""
        if self._tables.pool.num_held:
            return False
        self.forget_prefixes()
        return True

    def forget_prefixes(self) -> None:
        """Let nobody find a prefix known so far, even while sequences hold blocks: the contents are in doubt."""
        if self._tables.index is not None:
            self._tables.index.clear()

    def prefix_keys(self) -> list[bytes]:
        """Keys of the blocks that a prompt could find in the prefix cache now."""
        index = self._tables.index
        return [] if index is None else index.keys()

    def hit_blocks(self) -> HitBlocks | None:
        """The cached blocks that prompts have found; None without a prefix cache."""
        index = self._tables.index
        return None if index is None else index.hit_blocks()

    def cached_tokens(self, handle: int) -> int:
        """Prompt tokens that a live request found in the prefix cache when it first ran; 0 before that and after it.

        `StepOutputs.cached` says the same of every output, the last one included.
        """
        family = self._families.get(handle)
        return family.cached_tokens if family else 0

    def stats(self) -> SchedulerStats:
        rows, pool = self._rows, self._tables.pool
        return SchedulerStats(
            num_running=len(rows.order),
            num_waiting=len(self._waiting),
            kv_blocks_total=pool.num_blocks - 1,
            kv_blocks_used=pool.num_held,
            kv_waste_ratio=self._tables.waste_ratio(rows.order, rows.computed[rows.order]),
            num_preemptions=self._num_preemptions,
            prefix_queries_tokens=self._prefix_queries_tokens,
            prefix_hits_tokens=self._prefix_hits_tokens,
        )

    def plan(self) -> StepPlan | None:
        """The next step; None if no sequence can run before an earlier step's tokens are known."""
        state = self._rows
        rows, queries, missing, is_short, budget = self._serve_running()
        contexts = state.computed[rows]
        writes = self._tables.extend(rows, missing)
        self._register(rows, contexts + queries)
        draft = StepDraft(rows, contexts, queries, writes)
        if self._waiting and not is_short:
            self._admit(draft, budget - int(queries.sum()))
        draft.close()
        rows = draft.rows
        if len(rows) == 0:
            return None
        computed = draft.contexts + draft.queries
        samples = computed == state.known[rows]
        state.computed[rows] = computed
        state.known[rows] += samples
        for family in list(self._unspawned.values()):
            if state.computed[family.sequences[0].row] >= family.prompt_len:
                self._spawn(family)
        shared = None
        if self.config.finds_shared_prefixes:
            decodes = slice(0, int(np.count_nonzero(draft.queries == 1)))
            shared = self._shared.find(rows[decodes], state.epoch[rows[decodes]], draft.contexts[decodes])
        plan = draft.plan(samples, shared)
        self._num_steps += 1
        self._flights.append(_Flight(plan, state.epoch[rows]))
        return plan

    def update(self, plan: StepPlan, tokens: Ints) -> StepOutputs:
        """Take a step's tokens in: int32 [n], read where `plan.samples`; a negative one ends its choice with ERROR.

        Raises:
            ValueError: `plan` is not the oldest one without an update.
        """
        if not self._flights or self._flights[0].plan is not plan:
            raise ValueError("updates must come in the order of the plans, one for each")
        flight, state = self._flights.popleft(), self._rows
        slots = (plan.samples & (state.epoch[plan.rows] == flight.epochs)).nonzero()[0]
        rows, drawn = plan.rows[slots], tokens[slots]
        state.receive(rows, drawn)
        finish = np.zeros(len(rows), np.uint8)
        finish[state.received[rows] >= state.end[rows]] = FinishReason.LENGTH
        finish[state.is_stop(rows, drawn)] = FinishReason.STOP
        failed = drawn < 0
        if failed.any():
            finish[failed] = FinishReason.ERROR
            state.received[rows[failed]] -= 1
        outputs = StepOutputs(
            handles=state.handle[rows],
            choices=state.choice[rows],
            tokens=np.maximum(drawn, -1),
            finish=finish,
            slots=slots.astype(np.int32),
            cached=state.cached[rows],
        )
        for i in finish.nonzero()[0]:
            self._forget(self._vacate(int(rows[i])))
        return outputs

    def _check(self, request: Request) -> int:
        config, length = self.config, len(request.token_ids)
        if self._is_draining:
            raise Draining("The engine is shutting down and takes no new requests; send it to another replica.")
        if length == 0:
            raise EmptyPrompt("The prompt has no tokens; send at least one.")
        if length >= config.max_model_len:
            raise PromptTooLong(
                f"The prompt has {length} tokens, but prompt and answer together may have at most "
                f"{config.max_model_len}. Shorten the prompt."
            )
        end = min(length + request.max_tokens, config.max_model_len)
        needed, available = self._tables.blocks_for(end - 1), config.num_blocks - 1
        if needed > available:
            raise KVTooSmall(
                f"{length} prompt tokens and up to {end - length} more need {needed} KV-cache blocks of "
                f"{config.block_size} tokens, but the engine has {available}. Lower max_tokens, shorten the prompt, or "
                "give the KV cache more memory."
            )
        if request.is_resumed:
            self._check_resumed(request, end - length)
        elif config.max_num_queued_reqs is not None and self._num_queued >= config.max_num_queued_reqs:
            raise QueueFull(f"{self._num_queued} requests are waiting, as many as may; try again later.")
        return end

    def _check_resumed(self, request: Request, room: int) -> None:
        """It is not refused for a full queue: it waited its turn once."""
        running = [choice for choice in range(request.params.n) if choice not in request.ended]
        if len(request.outputs) != request.params.n or not running:
            raise BadResume(
                f"A resumed request needs the outputs of its {request.params.n} choices, one of them running."
            )
        longest = max(len(request.outputs[choice]) for choice in running)
        if longest >= room:
            raise BadResume(f"A choice that goes on has {longest} tokens already, and may have {room}.")

    def _serve_running(self) -> tuple[Ints, Ints, Ints, bool, int]:
        """Who of the running sequences computes how much, preempting until it fits.

        Returns rows, query lengths, blocks they lack, whether blocks were short, and the step's budget of tokens.
        """
        state, config, is_short = self._rows, self.config, False
        while True:
            is_unfinished = state.known[state.order] < state.end[state.order]
            rows = state.order[is_unfinished]
            computed = state.computed[rows]
            pending = state.known[rows] - computed
            budget = self._budget(pending)
            queries = share_budget(pending, budget, config.long_prefill_token_threshold)
            missing = self._tables.missing(rows, computed + queries)
            available = self._tables.pool.num_available
            if int(missing.sum()) > available:
                is_short = True
                if len(rows) == len(state.order):
                    self._preempt(int(rows[-1]))
                    continue
                # Somebody ends with a step in flight: who lacks blocks waits for theirs.
                queries[(missing > 0) & (np.cumsum(missing) > available)] = 0
            is_served = queries > 0
            if is_served.all():
                return rows, queries, missing, is_short, budget
            return rows[is_served], queries[is_served], missing[is_served], is_short, budget

    def _budget(self, pending: Ints) -> int:
        """Query tokens of the step; pending: what each running sequence could compute."""
        most, target = self.config.max_num_batched_tokens, self.config.mixed_step_tokens
        num_decodes = int(np.count_nonzero(pending == 1))
        waiting = int(pending.sum()) - num_decodes + self._waiting.num_tokens
        return mixed_budget(num_decodes, waiting, target, most) if target and num_decodes and waiting else most

    def _preempt(self, row: int) -> None:
        self._num_preemptions += 1
        self._wait(self._vacate(row))

    def _wait(self, sequence: Sequence) -> None:
        pending = self._uncached(sequence) if self.config.mixed_step_tokens else len(sequence.tokens)
        self._waiting.push(sequence, pending)

    def _uncached(self, sequence: Sequence) -> int:
        """Tokens that it is to compute: not what is in the prefix cache now, nor a prompt that a sibling computes."""
        family = sequence.family
        if len(sequence.tokens) == family.prompt_len and sequence.choice > min(family.sequences):
            return 1
        return len(sequence.tokens) - len(self._lookup(sequence)) * self.config.block_size

    def _admit(self, draft: StepDraft, budget: int) -> None:
        """Give waiting sequences rows and what is left of the budget, in order, until one does not fit."""
        state, tables = self._rows, self._tables
        promised = int(tables.missing(state.order, state.known[state.order]).sum()) + len(state.order)
        while budget and self._waiting and state.num_unused:
            sequence = self._waiting.first()
            length = len(sequence.tokens)
            source = self._fork_source(sequence)
            if source is None:
                hits = self._lookup(sequence)
                context = len(hits) * tables.block_size
                cost = tables.blocks_for(length) - int(np.count_nonzero(tables.pool.ref_counts[hits]))
            else:
                context, cost = length - 1, 1
            if len(state.order) and cost + promised + 1 > tables.pool.num_available:
                return
            self._waiting.discard(sequence)
            self._count_first_run(sequence, EMPTY if source is not None else hits)
            row = state.put(sequence, context)
            sequence.first_step = self._num_steps
            if source is None:
                tables.adopt(row, hits)
            else:
                self._fork(source, sequence, context, draft)
            query = min(length - context, budget, self.config.long_prefill_token_threshold or budget)
            rows, reach = np.array([row], np.int32), np.array([context + query], np.int32)
            tables.extend(rows, tables.missing(rows, reach))
            self._register(rows, reach)
            request = sequence.family.request
            admission = Admission(row, request, sequence.choice, sequence.tokens, sequence.family.prompt_len)
            draft.admit(admission, context, query, tables.entries(row))
            promised += tables.blocks_for(length) - int(tables.held[row]) + 1
            budget -= query
            if not sequence.family.is_spawned:
                self._unspawned[request.handle] = sequence.family

    def _lookup(self, sequence: Sequence) -> Ints:
        if sequence.choice == 0 and sequence.family.request.params.prompt_logprobs is not None:
            sequence.chain.identities.clear()
            return self._tables.lookup(sequence.chain, sequence.tokens[:0])
        return self._tables.lookup(sequence.chain, sequence.tokens)

    def _count_first_run(self, sequence: Sequence, hits: Ints) -> None:
        family = sequence.family
        if family.is_queued:
            family.is_queued = False
            family.cached_tokens = min(len(hits) * self.config.block_size, family.prompt_len)
            self._num_queued -= 1
            if family.request.is_warming:
                return
            if self._tables.index is not None:
                self._tables.index.count_hit(hits)
            self._prefix_queries_tokens += family.prompt_len
            self._prefix_hits_tokens += family.cached_tokens

    def _fork_source(self, sequence: Sequence) -> Sequence | None:
        """A running sibling whose prompt earlier steps have computed, for a sequence that has no output yet.

        One that came in with this very step will not do, though it found its prompt in the cache: this step may be
        the one that computes it, and blocks are copied before.
        """
        if sequence.choice == 0 or len(sequence.tokens) > sequence.family.prompt_len:
            return None
        for sibling in sequence.family.sequences.values():
            is_settled = sibling.row >= 0 and sibling.first_step < self._num_steps
            if is_settled and self._rows.computed[sibling.row] >= sequence.family.prompt_len:
                return sibling
        return None

    def _fork(self, source: Sequence, sequence: Sequence, context: int, draft: StepDraft) -> None:
        sequence.chain = self._tables.fork(source.row, sequence.row, context, source.chain)
        if context % self.config.block_size:
            copied = self._tables.own(sequence.row, context)
            if copied is not None:
                draft.copy(*copied)

    def _spawn(self, family: Family) -> None:
        """Let the siblings of choice 0 wait for rows of their own."""
        self._unspawned.pop(family.request.handle, None)
        if family.is_spawned:
            return
        family.is_spawned = True
        for sequence in family.sequences.values():
            if sequence.choice:
                self._wait(sequence)

    def _register(self, rows: Ints, computed: Ints) -> None:
        """Tell the prefix index which blocks are full: tokens known, K and V stored up to `computed` or planned."""
        if self._tables.index is None:
            return
        state, size = self._rows, self.config.block_size
        full = np.minimum(computed, state.received[rows]) // size
        news = full - self._tables.registered[rows]
        grown = (news > 0).nonzero()[0]
        if len(grown) == 0:
            return
        rows, full = rows[grown], full[grown]
        chains = [sequence.chain for row in rows.tolist() if (sequence := state.sequences[row]) is not None]
        if news.max() == 1:
            self._tables.register_next(rows, chains, state.tokens)
            return
        for row, chain, count in zip(rows.tolist(), chains, full.tolist(), strict=True):
            self._tables.register(row, chain, state.tokens[row, : count * size])

    def _vacate(self, row: int) -> Sequence:
        """Take row and blocks from a sequence; what it computed stays in the prefix cache."""
        rows = np.array([row], np.int32)
        self._register(rows, self._rows.computed[rows])
        self._tables.release(row)
        sequence = self._rows.clear(row)
        if sequence.choice == 0:
            self._unspawned.pop(sequence.family.request.handle, None)
        return sequence

    def _forget(self, sequence: Sequence) -> None:
        family = sequence.family
        del family.sequences[sequence.choice]
        if not family.sequences:
            del self._families[family.request.handle]
            if family.is_queued:
                self._num_queued -= 1
