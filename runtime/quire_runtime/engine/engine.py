"""The engine in one object: add requests, call `step`, take tokens."""

import time
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quire_api.errors import UserError
from quire_api.sampling import SamplingParams
from quire_runtime.config import EngineConfig
from quire_runtime.engine.load import Loaded, load
from quire_runtime.engine.messages import STEP_SIZE_BOUNDS, EngineStats, PromptLogprobs, RequestTimes, TokenLogprobs
from quire_runtime.execute.output import PendingStep, StepResult
from quire_runtime.execute.sampler import POISONED
from quire_runtime.kv.events import EventLog
from quire_runtime.kv.hot import HitBlocks
from quire_runtime.scheduler.config import SchedulerConfig
from quire_runtime.scheduler.plan import StepOutputs, StepPlan
from quire_runtime.scheduler.request import FinishReason, Request
from quire_runtime.scheduler.scheduler import Scheduler

LEAD_S = 0.002
"""So long before the device is done with a step the next one is planned: to plan and launch it takes 0.3 to 1 ms."""
LEAST_WAIT_S = 1e-4
"""What is waited for so long was not done before."""
POISON_MESSAGE = "The model computed a value that is not a number for this request; it was ended, others go on."


class InvalidRequest(UserError):
    """A prompt or a parameter that this model cannot take."""


@dataclass(slots=True)
class EngineOutputs:
    """What one step brought; the arrays are parallel, one entry a choice that got a token or ended.

    handles int64, choices int32, tokens int32 (-1: ended without one), finish uint8 (FinishReason),
    cached int32: prompt tokens found in the prefix cache on a choice's first output, else -1.
    logprobs: parallel too, or empty when nobody asked. errors: why choices of a handle ended with FinishReason.ERROR.
    times: of requests whose first token this is.
    """

    handles: NDArray[np.int64]
    choices: NDArray[np.int32]
    tokens: NDArray[np.int32]
    finish: NDArray[np.uint8]
    cached: NDArray[np.int32]
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobs] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    times: list[RequestTimes] = field(default_factory=list)


@dataclass(slots=True)
class Live:
    """What the engine remembers of a request: choices without an output yet, choices that run, prompt logprobs sent.

    Times by the monotonic clock; scheduled_s: 0 until it first ran; is_timed: its first token has been reported.
    """

    unseen: set[int]
    running: int
    arrived_s: float
    scheduled_s: float = 0.0
    is_timed: bool = False
    next_prompt_position: int = 1


class Engine:
    """Scheduler and runner in a loop of depth 1 or 2: with 2, a step is planned and launched before the one before it
    is read. Not thread-safe; one thread adds, aborts and steps.
    """

    def __init__(self, config: EngineConfig, loaded: Loaded | None = None) -> None:
        """
        Raises:
            UserError: the model cannot be loaded or does not fit.
        """
        self.config = config
        self.loaded = loaded or load(config)
        memory, facts = self.loaded.memory, self.loaded.model_config
        self.max_model_len = memory.max_model_len
        self.vocab_size = facts.vocab_size
        self.eos_token_ids = frozenset(facts.eos_token_ids)
        self.kv_log = EventLog()
        self._scheduler = Scheduler(
            SchedulerConfig(
                max_num_seqs=config.max_num_seqs,
                max_num_batched_tokens=config.max_num_batched_tokens,
                max_model_len=memory.max_model_len,
                block_size=config.block_size,
                num_blocks=memory.num_blocks,
                enable_prefix_caching=config.enable_prefix_caching,
                long_prefill_token_threshold=config.long_prefill_token_threshold,
                mixed_step_tokens=config.mixed_step_tokens,
                max_num_queued_reqs=config.max_num_queued_reqs,
                finds_shared_prefixes=not config.deterministic,
            ),
            self.loaded.model_revision,
            self.kv_log,
        )
        self._runner = self.loaded.runner
        self._in_flight: deque[tuple[StepPlan, PendingStep]] = deque()
        self._live: dict[int, Live] = {}
        self._num_unseen = 0
        self._seeds = np.random.default_rng(config.seed)
        self._steps = self._tokens = 0
        self._step_s = self._device_s = 0.0
        self._began: float | None = None
        """When the device began with the oldest step in flight, where that is known."""
        self._decodes_s = (0.0, 0.0)
        """What the last two steps of nothing but decodes took; 0 if that is not known."""
        self._step_sizes = [0] * (len(STEP_SIZE_BOUNDS) + 1)
        self._num_corrupted = 0

    @property
    def has_work(self) -> bool:
        return bool(self._in_flight) or self._scheduler.has_work

    @property
    def spare_s(self) -> float:
        """Seconds for which the next step can still be planned without the device waiting for it; what is added until
        then need not wait for one step more. 0 where no more sequences can run."""
        if not self._in_flight or self._began is None or not self._scheduler.has_room:
            return 0.0
        return max(self._began + min(self._decodes_s) - LEAD_S - time.perf_counter(), 0.0)

    def add(
        self,
        handle: int,
        token_ids: list[int],
        params: SamplingParams,
        priority: int = 0,
        cache_salt: str = "",
        arrived_s: float | None = None,
        outputs: Sequence[list[int]] = (),
        ended: Collection[int] = (),
        is_warming: bool = False,
    ) -> None:
        """Queue a request under a handle of the caller's, unique among live requests.

        arrived_s: when it was asked for, by the monotonic clock; None: now.
        outputs, ended: to go on with a request that another engine began: the output of each choice so far, and the
        choices that have ended. What follows is what would have followed there, for a request with a seed.
        is_warming: no client asked for it.

        Raises:
            InvalidRequest: a token id outside the vocabulary.
            UserError: one of scheduler.errors.
        """
        prompt = self._known(token_ids)
        for ids in outputs:
            self._known(ids)
        self._check(params)
        room = max(self.max_model_len - len(token_ids), 1)
        stops = frozenset(params.stop_token_ids)
        self._scheduler.add(
            Request(
                handle=handle,
                token_ids=prompt,
                params=params,
                seed=self._new_seed() if params.seed is None else params.seed,
                max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
                priority=priority,
                cache_salt=cache_salt,
                is_warming=is_warming,
                stop_token_ids=stops if params.ignore_eos else stops | self.eos_token_ids,
                outputs=tuple(outputs),
                ended=frozenset(ended),
            )
        )
        running = set(range(params.n)).difference(ended)
        self._live[handle] = Live(running, len(running), time.monotonic() if arrived_s is None else arrived_s)
        self._num_unseen += 1

    def abort(self, handle: int, choice: int | None = None) -> None:
        """End a request, or one choice of it, now: no later output mentions it. Unknown handles are ignored."""
        live = self._live.get(handle)
        if live is None:
            return
        ended = self._scheduler.abort(handle, choice)
        live.running -= len(ended)
        if not live.running:
            self._forget(handle)
            return
        was_unseen = bool(live.unseen)
        live.unseen.difference_update(ended)
        self._num_unseen -= was_unseen and not live.unseen

    def step(self) -> EngineOutputs | None:
        """Keep the pipeline full, then read its oldest step; None when there is nothing to do."""
        started = time.perf_counter()
        while len(self._in_flight) < self.loaded.depth:
            plan = self._scheduler.plan()
            if plan is None:
                break
            for admission in plan.admissions:
                live = self._live[admission.request.handle]
                live.scheduled_s = live.scheduled_s or time.monotonic()
            launched = time.perf_counter()
            self._began = self._began if self._in_flight else launched
            self._in_flight.append((plan, self._runner.launch(plan)))
            self._device_s += time.perf_counter() - launched
        if not self._in_flight:
            return None
        plan, pending = self._in_flight.popleft()
        waiting = time.perf_counter()
        result = pending.wait()
        ended = time.perf_counter()
        self._device_s += ended - waiting
        self._note_end(plan, ended, is_known=ended - waiting > LEAST_WAIT_S)
        outputs = self._read(plan, result)
        self._steps += 1
        tokens = int(plan.query_lens.sum())
        self._tokens += tokens
        self._step_sizes[bisect_left(STEP_SIZE_BOUNDS, tokens)] += 1
        self._step_s += time.perf_counter() - started
        return outputs

    def _note_end(self, plan: StepPlan, ended: float, is_known: bool) -> None:
        """The oldest step is done. is_known: it was waited for; else it may have ended, and the next one begun, before
        `ended`."""
        if self._began is not None and plan.num_decodes == len(plan.rows):
            self._decodes_s = (self._decodes_s[1], ended - self._began if is_known else 0.0)
        self._began = ended if is_known else None

    def prepare(self) -> bool:
        """Use a moment without work for steps to come; False if nothing is left to prepare."""
        return self._runner.prepare()

    def drain(self) -> None:
        """Take no new requests; those that run are finished."""
        self._scheduler.drain()

    def reset_prefix_cache(self) -> bool:
        """Forget every cached block; False while requests run."""
        return self._scheduler.reset_prefix_cache()

    def prefix_keys(self) -> list[bytes]:
        """Keys of the blocks that a prompt could find in the prefix cache now; `kv_log` tells what changes."""
        return self._scheduler.prefix_keys()

    def hit_blocks(self) -> HitBlocks | None:
        """The cached blocks that prompts have found; None without a prefix cache."""
        return self._scheduler.hit_blocks()

    @property
    def stats(self) -> EngineStats:
        seen = self._scheduler.stats()
        return EngineStats(
            num_running=seen.num_running,
            num_waiting=seen.num_waiting,
            kv_blocks_total=seen.kv_blocks_total,
            kv_blocks_used=seen.kv_blocks_used,
            kv_waste_ratio=seen.kv_waste_ratio,
            num_preemptions=seen.num_preemptions,
            prefix_queries_tokens=seen.prefix_queries_tokens,
            prefix_hits_tokens=seen.prefix_hits_tokens,
            steps=self._steps,
            step_seconds=self._step_s,
            step_tokens=self._tokens,
            python_seconds=self._step_s - self._device_s,
            num_corrupted=self._num_corrupted,
            step_sizes=self._step_sizes.copy(),
        )

    def _new_seed(self) -> int:
        """For a request without one; a deterministic engine gives each the same, so that its answer is its own."""
        return self.config.seed if self.config.deterministic else int(self._seeds.integers(2**63))

    def _known(self, token_ids: list[int]) -> NDArray[np.int32]:
        """
        Raises:
            InvalidRequest: one of them is no token of the model.
        """
        try:
            # Half the time of numpy's own way from a list.
            ids = np.array(array("i", token_ids), np.int32)
            if not len(ids) or (ids.min() >= 0 and ids.max() < self.vocab_size):
                return ids
        except OverflowError:
            pass
        wrong = next(token for token in token_ids if not 0 <= token < self.vocab_size)
        raise InvalidRequest(f"Token id {wrong} is outside the model's vocabulary of {self.vocab_size} tokens.")

    def _check(self, params: SamplingParams) -> None:
        if any(token >= self.vocab_size for token in params.logit_bias or {}):
            raise InvalidRequest(
                f"logit_bias names a token outside the model's vocabulary of {self.vocab_size} tokens."
            )

    def _read(self, plan: StepPlan, result: StepResult) -> EngineOutputs:
        poisoned = result.tokens == POISONED
        if poisoned.any():
            self._runner.scrub(plan.rows[poisoned])
            self._scheduler.forget_prefixes()
        seen = self._scheduler.update(plan, result.tokens)
        outputs = EngineOutputs(
            handles=seen.handles,
            choices=seen.choices,
            tokens=seen.tokens,
            finish=seen.finish,
            cached=np.full(len(seen.handles), -1, np.int32),
            logprobs=[result.logprobs.get(slot) for slot in seen.slots.tolist()] if result.logprobs else [],
            prompt_logprobs=self._new_prompt_logprobs(result) if result.prompt_logprobs else [],
        )
        if self._num_unseen:
            self._mark_first(outputs, seen)
        for index in np.flatnonzero(outputs.finish).tolist():
            handle = int(outputs.handles[index])
            if outputs.finish[index] == FinishReason.ERROR:
                self._num_corrupted += handle not in outputs.errors
                outputs.errors[handle] = POISON_MESSAGE
            live = self._live[handle]
            live.running -= 1
            if not live.running:
                self._forget(handle)
        return outputs

    def _mark_first(self, outputs: EngineOutputs, seen: StepOutputs) -> None:
        """Say of first outputs what their prompts found in the cache, and how long they took."""
        now = time.monotonic()
        for index, (handle, choice) in enumerate(zip(seen.handles.tolist(), seen.choices.tolist(), strict=True)):
            live = self._live.get(handle)
            if live is not None and choice in live.unseen:
                outputs.cached[index] = seen.cached[index]
                live.unseen.remove(choice)
                self._num_unseen -= not live.unseen
                if not live.is_timed and seen.tokens[index] >= 0:
                    live.is_timed = True
                    queue_s = max(live.scheduled_s - live.arrived_s, 0.0)
                    outputs.times.append(RequestTimes(handle, queue_s, now - live.scheduled_s))

    def _new_prompt_logprobs(self, result: StepResult) -> list[PromptLogprobs]:
        """Positions not sent yet: a preempted prompt computes them twice."""
        news = []
        for handle, start, positions in result.prompt_logprobs:
            live = self._live.get(handle)
            if live is None or start + len(positions) <= live.next_prompt_position:
                continue
            known = live.next_prompt_position - start
            news.append(PromptLogprobs(handle, live.next_prompt_position, positions[known:]))
            live.next_prompt_position = start + len(positions)
        return news

    def _forget(self, handle: int) -> None:
        live = self._live.pop(handle, None)
        if live is not None:
            self._num_unseen -= bool(live.unseen)
