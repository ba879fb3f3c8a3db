"""A device of plain integers: it stores which token lies in which slot and checks what every query can see."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any
from unittest import mock

import numpy as np
import pytest

from quire_api.sampling import SamplingParams
from quire_runtime.kv import shared
from quire_runtime.kv.events import EventLog
from quire_runtime.scheduler.config import SchedulerConfig
from quire_runtime.scheduler.plan import StepOutputs, StepPlan
from quire_runtime.scheduler.request import FinishReason, Request
from quire_runtime.scheduler.scheduler import Scheduler

VOCABULARY = 4
NOTHING = -1


@pytest.fixture(autouse=True, scope="session")
def any_shared_block_pays() -> Iterator[None]:
    with mock.patch.multiple(shared, LEAST_SAVED=1, FEWEST=2):
        yield


def draw(seed: int, choice: int, context: tuple[int, ...]) -> int:
    """The token that follows `context`, whatever the batch, the chunks and the preemptions were."""
    return blake2b(repr((seed, choice, context)).encode(), digest_size=2).digest()[0] % VOCABULARY


class ReferenceDevice:
    """Carries plans out in order. A slot holds (position, the tokens up to and including its own).

    `run` fails if a query's block table does not map every position of its context, and of itself, to a slot that
    holds exactly the right token behind exactly the right prefix.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        columns = -(-config.max_model_len // config.block_size)
        self.tokens = np.full((config.max_num_seqs, config.max_model_len + 1), NOTHING)
        self.tables = np.zeros((config.max_num_seqs, columns), np.int64)
        self.seeds: dict[int, tuple[int, int]] = {}
        self.slots: dict[tuple[int, int], tuple[int, ...]] = {}
        self.computed_tokens = 0

    def run(self, plan: StepPlan) -> np.ndarray:
        config = self.config
        assert len(plan.rows) == len(set(plan.rows.tolist())) <= config.max_num_seqs
        assert 0 < plan.query_lens.sum() <= config.max_num_batched_tokens
        assert (plan.query_lens[: plan.num_decodes] == 1).all()
        assert (plan.query_lens[plan.num_decodes :] > 1).all()
        for admission in plan.admissions:
            self.tokens[admission.row] = NOTHING
            self.tokens[admission.row, : len(admission.token_ids)] = admission.token_ids
            self.tables[admission.row] = 0
            self.seeds[admission.row] = (admission.request.seed, admission.choice)
            assert list(admission.token_ids[: admission.num_prompt_tokens]) == list(admission.request.token_ids)
        entries = list(zip(plan.table_rows.tolist(), plan.table_columns.tolist(), strict=True))
        assert len(set(entries)) == len(entries), "one table entry is written twice"
        self.tables[plan.table_rows, plan.table_columns] = plan.table_blocks
        targets = plan.copy_targets.tolist()
        assert len(set(targets)) == len(targets)
        assert not set(targets) & set(plan.copy_sources.tolist())
        for source, target in zip(plan.copy_sources.tolist(), targets, strict=True):
            for offset in range(config.block_size):
                self.slots.pop((target, offset), None)
                if (source, offset) in self.slots:
                    self.slots[target, offset] = self.slots[source, offset]
        self._check_shared(plan)
        self._store(plan)
        return self._attend(plan)

    def _check_shared(self, plan: StepPlan) -> None:
        """What is said to be shared lies in the owner's blocks, before every query."""
        if plan.shared is None:
            return
        owner = plan.rows[plan.shared.owner]
        assert plan.num_decodes == len(plan.shared.lens)
        assert plan.shared.lens[plan.shared.owner] > 0
        for row, context, length in zip(plan.rows, plan.context_lens, plan.shared.lens, strict=False):
            assert length in (0, plan.shared.lens[plan.shared.owner])
            assert length <= context
            assert length % self.config.block_size == 0
            count = length // self.config.block_size
            assert self.tables[row, :count].tolist() == self.tables[owner, :count].tolist()

    def _store(self, plan: StepPlan) -> None:
        size, written = self.config.block_size, set()
        for row, start, count in zip(plan.rows, plan.context_lens, plan.query_lens, strict=True):
            for position in range(start, start + count):
                block = int(self.tables[row, position // size])
                assert block != 0, "a query would be stored in the padding block"
                prefix = tuple(self.tokens[row, : position + 1].tolist())
                assert NOTHING not in prefix, "a query reads a token that nobody drew"
                place = (block, position % size)
                assert place not in written, "two sequences write one slot in one step"
                written.add(place)
                self.slots[place] = prefix
                self.computed_tokens += 1

    def _attend(self, plan: StepPlan) -> np.ndarray:
        size, out = self.config.block_size, np.full(len(plan.rows), 7, np.int32)
        for slot, row in enumerate(plan.rows.tolist()):
            length = int(plan.context_lens[slot] + plan.query_lens[slot])
            tokens = tuple(self.tokens[row, :length].tolist())
            for position in range(length):
                seen = self.slots.get((int(self.tables[row, position // size]), position % size))
                assert seen == tokens[: position + 1], f"row {row} sees foreign contents at position {position}"
            if plan.samples[slot]:
                seed, choice = self.seeds[row]
                out[slot] = draw(seed, choice, tokens)
                self.tokens[row, length] = out[slot]
        return out


class Bench:
    """A scheduler on a reference device, with up to `depth` steps planned before the oldest one's tokens are read."""

    def __init__(self, depth: int = 1, **config: Any) -> None:
        defaults: dict[str, Any] = {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 32,
            "max_model_len": 64,
            "block_size": 4,
            "num_blocks": 65,
        }
        self.config = SchedulerConfig(**{**defaults, **config})
        self.kv_log = EventLog()
        self.scheduler = Scheduler(self.config, "revision", self.kv_log)
        self.device = ReferenceDevice(self.config)
        self.depth = depth
        self.flights: deque[tuple[StepPlan, np.ndarray]] = deque()
        self.requests: dict[int, Request] = {}
        self.outputs: dict[tuple[int, int], list[int]] = {}
        self.finish: dict[tuple[int, int], FinishReason] = {}
        self.plans: list[StepPlan] = []

    def add(
        self,
        prompt: Iterable[int],
        max_tokens: int = 4,
        *,
        priority: int = 0,
        salt: str = "",
        stops: Iterable[int] = (),
        **params: Any,
    ) -> int:
        handle = len(self.requests)
        request = Request(
            handle=handle,
            token_ids=list(prompt),
            params=SamplingParams(max_tokens=max_tokens, **params),
            seed=handle * 7 + 1,
            max_tokens=max_tokens,
            priority=priority,
            cache_salt=salt,
            stop_token_ids=frozenset(stops),
        )
        self.scheduler.add(request)
        self.requests[handle] = request
        for choice in range(request.params.n):
            self.outputs[handle, choice] = []
        return handle

    def abort(self, handle: int, choice: int | None = None) -> list[int]:
        ended = self.scheduler.abort(handle, choice)
        for each in ended:
            assert (handle, each) not in self.finish
            self.finish[handle, each] = FinishReason.ABORT
        return ended

    def launch(self) -> StepPlan | None:
        plan = self.scheduler.plan()
        if plan is not None:
            self.plans.append(plan)
            self.flights.append((plan, self.device.run(plan)))
        return plan

    def reap(self) -> StepOutputs:
        outputs = self.scheduler.update(*self.flights.popleft())
        for handle, choice, token, finish in zip(
            outputs.handles.tolist(), outputs.choices.tolist(), outputs.tokens.tolist(), outputs.finish, strict=True
        ):
            assert (handle, choice) not in self.finish, "an ended choice got another token"
            self.outputs[handle, choice].append(token)
            if finish != FinishReason.NONE:
                self.finish[handle, choice] = FinishReason(finish)
        return outputs

    def step(self) -> None:
        """Plan and launch one step; read the oldest if `depth` are in flight or nothing could be planned."""
        planned = self.launch()
        if self.flights and (planned is None or len(self.flights) >= self.depth):
            self.reap()

    def run(self, limit: int = 5000) -> None:
        """Until everything has ended; then nothing may be held any more."""
        while self.scheduler.has_work:
            self.step()
            limit -= 1
            assert limit > 0, "no progress"
        self.check_idle()

    def check_idle(self) -> None:
        stats = self.scheduler.stats()
        assert (stats.num_running, stats.num_waiting, stats.kv_blocks_used, stats.kv_waste_ratio) == (0, 0, 0, 0.0)
        assert not self.scheduler.has_work

    def expected(self, handle: int, choice: int = 0) -> tuple[list[int], FinishReason]:
        """What the choice must say, computed alone and without a cache."""
        request = self.requests[handle]
        tokens = list(request.token_ids)
        end = min(len(tokens) + request.max_tokens, self.config.max_model_len)
        while len(tokens) < end:
            tokens.append(draw(request.seed, choice, tuple(tokens)))
            count = len(tokens) - len(request.token_ids)
            if tokens[-1] in request.stop_token_ids and count > request.params.min_tokens:
                return tokens[len(request.token_ids) :], FinishReason.STOP
        return tokens[len(request.token_ids) :], FinishReason.LENGTH

    def check_answers(self) -> None:
        """Every choice that was not aborted said exactly what it had to say; an aborted one said a beginning of it."""
        for (handle, choice), said in self.outputs.items():
            tokens, finish = self.expected(handle, choice)
            if self.finish[handle, choice] == FinishReason.ABORT:
                assert said == tokens[: len(said)]
            else:
                assert (said, self.finish[handle, choice]) == (tokens, finish)


@pytest.fixture
def bench() -> Callable[..., Bench]:
    return Bench
