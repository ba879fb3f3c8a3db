"""One simulated replica: our scheduler's rules on counts alone, its steps as long as the fitted cost says.

What is kept of the real one (held to it by tests/bench/test_engine.py): decodes first, prompts in chunks of what the
budget leaves; admission only with blocks for all that is known beside one more for each running sequence; blocks of an
ended sequence stay findable, evicted least recently used, the tail of a prefix before its head; the latest sequence is
preempted when blocks run out. What is simpler: blocks of an answer become findable when it ends, not as they fill.
"""

from asyncio import AbstractEventLoop, TimerHandle
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from gateway_bench.step_cost import StepCost, pairs

BLOCK_SIZE = 16
_LONGEST_STRETCH = 256


@dataclass(eq=False, slots=True)
class Job:
    """One request; block keys as the engine would hash them. Moments in seconds of the simulation."""

    tokens: Sequence[int]
    keys: Sequence[bytes]
    """Of the prompt's full blocks; none where nothing is to be shared: then the gateway sees its length alone."""
    output_tokens: int
    answer_keys: Sequence[bytes] = ()
    """Of the blocks that become full while it answers; made up where nobody will ask for them."""
    affinity: bytes = b""
    """What KubeAI's hash looks at: the first 100 characters of the first user message."""
    arrived_s: float = 0.0
    admitted_s: float = 0.0
    """When its prefill began."""
    first_s: float = 0.0
    ended_s: float = 0.0
    cached_tokens: int = 0
    replica: int = -1
    on_first: Callable[[], None] | None = None
    on_end: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """As `quire serve` has them."""

    blocks: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192


class BlockCache:
    """Findable blocks by key, held or not, and a count of blocks that nobody could find."""

    def __init__(self, blocks: int, tell: Callable[[list[bytes], list[bytes]], None]) -> None:
        self.blocks = blocks
        self._tell = tell
        self._held: dict[bytes, int] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        self._private = 0

    @property
    def available(self) -> int:
        return self.blocks - len(self._held) - self._private

    @property
    def used(self) -> int:
        """Held blocks: what engines report as KV-cache usage."""
        return len(self._held) + self._private

    @property
    def fill(self) -> float:
        """Share of its blocks that hold something, findable or in use."""
        return (self.used + len(self._idle)) / self.blocks

    @property
    def findable(self) -> set[bytes]:
        return {*self._held, *self._idle}

    def match(self, keys: Sequence[bytes], most: int) -> int:
        """How many of the first `most` keys are findable without a gap."""
        held, idle = self._held, self._idle
        for depth in range(min(most, len(keys))):
            if keys[depth] not in held and keys[depth] not in idle:
                return depth
        return min(most, len(keys))

    def idle_among(self, keys: Sequence[bytes]) -> int:
        return sum(key in self._idle for key in keys)

    def hold(self, keys: Sequence[bytes]) -> None:
        """One more reference to findable blocks."""
        held, idle = self._held, self._idle
        for key in keys:
            if key in idle:
                del idle[key]
                held[key] = 1
            else:
                held[key] += 1

    def take(self, count: int) -> None:
        """Hold so many blocks that nobody can find (yet)."""
        self._private += count
        over = self.used + len(self._idle) - self.blocks
        if over > 0:
            self._tell([], [self._idle.popitem(last=False)[0] for _ in range(over)])

    def publish(self, keys: Sequence[bytes]) -> None:
        """Private blocks become findable; the copy of one that already is counts no more (an engine frees it later)."""
        held, idle, fresh = self._held, self._idle, []
        for key in keys:
            if key in held:
                held[key] += 1
            elif key in idle:
                del idle[key]
                held[key] = 1
            else:
                held[key] = 1
                fresh.append(key)
        self._private -= len(keys)
        if fresh:
            self._tell(fresh, [])

    def release(self, keys: Sequence[bytes], private: int) -> None:
        """Give references back, the last block first, so that heads outlive tails."""
        held, idle = self._held, self._idle
        self._private -= private
        for key in reversed(keys):
            count = held[key]
            if count == 1:
                del held[key]
                idle[key] = None
            else:
                held[key] = count - 1


@dataclass(eq=False, slots=True)
class _Running:
    job: Job
    rank: int
    length: int
    """Known tokens when it was admitted."""
    made: int
    """Output tokens made before it was admitted."""
    context: int = 0
    """Prompt tokens computed."""
    findable: int = 0
    """Of its blocks, those with a key that others can find, from the head on."""
    started_step: int = 0
    phase: int = 0
    is_gone: bool = False


@dataclass(slots=True)
class _Stretch:
    """Steps that differ in their context alone, each `growth_s` longer than the last: one timer does for all."""

    began_s: float
    steps: int
    first_s: float
    growth_s: float
    timer: TimerHandle | None = None

    def end_s(self, steps: int) -> float:
        return self.began_s + steps * self.first_s + self.growth_s * steps * (steps - 1) / 2

    def steps_at(self, now: float) -> int:
        """Steps that have begun by `now`, at least one."""
        low, high = 1, self.steps
        while low < high:
            middle = (low + high) // 2
            if self.end_s(middle) > now:
                high = middle
            else:
                low = middle + 1
        return low


class SimulatedEngine:
    """Runs jobs given to `add`; a step is one timer of the loop.

    tell: called with (stored, removed) keys as they happen.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        cost: StepCost,
        limits: EngineLimits,
        tell: Callable[[list[bytes], list[bytes]], None] = lambda stored, removed: None,
    ) -> None:
        self._loop = loop
        self._cost = cost
        self.limits = limits
        self.cache = BlockCache(limits.blocks, tell)
        self.waiting: deque[tuple[int, Job, int]] = deque()
        self._prefilling: list[_Running] = []
        self._ends: list[tuple[int, int, _Running]] = []
        self._decoding = 0
        self._context = 0
        self._phases = [0] * BLOCK_SIZE
        self._step = 0
        self._rank = 0
        self._is_stepping = False
        self.prompt_tokens = self.hit_tokens = self.output_tokens = self.preemptions = 0
        self._stretch: _Stretch | None = None

    @property
    def running(self) -> int:
        return self._decoding + len(self._prefilling)

    def add(self, job: Job) -> None:
        self._rank += 1
        self.waiting.append((self._rank, job, 0))
        if not self._is_stepping:
            self._begin_step()
        elif self._stretch is not None:
            self._cut(self._stretch)

    def _begin_step(self) -> None:
        """Plan one step and set its end."""
        budget = self.limits.max_num_batched_tokens - self._decoding
        self._grow()
        queries, work = self._decoding, 0.0
        computed: list[_Running] = []
        prefilling = iter(list(self._prefilling))
        while budget > 0:
            running = next(prefilling, None) or self._admit()
            if running is None:
                break
            chunk = min(budget, running.length - running.context)
            work += pairs(running.context, chunk)
            queries += chunk
            budget -= chunk
            running.context += chunk
            # At once, so that twins in one step share their prefix.
            self._publish(running)
            computed.append(running)
        if not queries:
            self._is_stepping = False
            return
        self._is_stepping = True
        seconds = self._cost.step_s(queries, self._context, work)
        if not computed and (steps := self._alike()) > 1:
            stretch = _Stretch(self._loop.time(), steps, seconds, self._cost.context_s * self._decoding)
            stretch.timer = self._loop.call_at(stretch.end_s(steps), self._end_stretch, stretch)
            self._stretch = stretch
            return
        self._loop.call_later(seconds, self._end_step, computed)

    def _alike(self) -> int:
        """Decode steps from this one on in which nobody ends and blocks suffice, unless a request comes."""
        while self._ends[0][2].is_gone:
            heappop(self._ends)
        steps = min(self._ends[0][0] - self._step, _LONGEST_STRETCH)
        return steps if self._growth(steps) <= self.cache.available else 1

    def _growth(self, steps: int) -> int:
        """Blocks that the next steps need, this one's (taken already) not counted."""
        rounds, rest = divmod(steps, BLOCK_SIZE)
        needed = rounds * self._decoding
        needed += sum(self._phases[(self._step + step) % BLOCK_SIZE] for step in range(rest))
        return needed - self._phases[self._step % BLOCK_SIZE]

    def _cut(self, stretch: "_Stretch") -> None:
        """A request has come: the stretch ends with the step that runs now."""
        steps = stretch.steps_at(self._loop.time())
        if steps < stretch.steps:
            stretch.timer.cancel()
            stretch.steps = steps
            stretch.timer = self._loop.call_at(stretch.end_s(steps), self._end_stretch, stretch)

    def _end_stretch(self, stretch: "_Stretch") -> None:
        self._stretch = None
        grown = self._growth(stretch.steps)
        if grown:
            self.cache.take(grown)
        before = stretch.steps - 1
        self._step += before
        self._context += before * self._decoding
        self.output_tokens += before * self._decoding
        self._end_step([])

    def _end_step(self, computed: list[_Running]) -> None:
        now = self._loop.time()
        self._step += 1
        self._context += self._decoding
        self.output_tokens += self._decoding
        while self._ends and self._ends[0][0] <= self._step:
            running = heappop(self._ends)[2]
            if not running.is_gone:
                self._finish(running, now)
        for running in computed:
            if running.context == running.length and not running.is_gone:
                self._first_token(running, now)
        self._begin_step()

    def _admit(self) -> _Running | None:
        """The first in the queue starts; None if there is nobody, or no room."""
        if not self.waiting or self.running >= self.limits.max_num_seqs:
            return None
        rank, job, made = self.waiting[0]
        length = len(job.tokens) + made
        cache = self.cache
        keys = job.keys if not made else [*job.keys, *job.answer_keys]
        hits = cache.match(keys, (length - 1) // BLOCK_SIZE)
        cost = -(-length // BLOCK_SIZE) - hits + cache.idle_among(keys[:hits])
        # All its known tokens must fit beside one more block for every running sequence.
        if self.running and cost + self.running + 1 > cache.available:
            return None
        self.waiting.popleft()
        running = _Running(job, rank, length, made, context=hits * BLOCK_SIZE, findable=hits)
        cache.hold(keys[:hits])
        cache.take(-(-length // BLOCK_SIZE) - hits)
        if not made:
            job.cached_tokens = running.context
            job.admitted_s = self._loop.time()
            self.prompt_tokens += length
            self.hit_tokens += running.context
        self._prefilling.append(running)
        return running

    def _publish(self, running: _Running) -> None:
        full = min(running.context // BLOCK_SIZE, len(running.job.keys))
        if full > running.findable:
            self.cache.publish(running.job.keys[running.findable : full])
            running.findable = full

    def _first_token(self, running: _Running, now: float) -> None:
        self._prefilling.remove(running)
        job = running.job
        self.output_tokens += 1
        if not running.made:
            job.first_s = now
            if job.on_first is not None:
                job.on_first()
        left = job.output_tokens - running.made - 1
        running.made += 1
        if left <= 0:
            self._end(running, 0, now)
            return
        running.started_step = self._step
        # It takes a block in each step before which its length is a multiple of the block size.
        running.phase = (self._step - running.length) % BLOCK_SIZE
        self._phases[running.phase] += 1
        self._decoding += 1
        self._context += running.length
        heappush(self._ends, (self._step + left, running.rank, running))

    def _grow(self) -> None:
        """Blocks that this step's decodes need; the latest sequence gives way where there are none."""
        while self._phases[self._step % BLOCK_SIZE] > self.cache.available:
            self._preempt()
        needed = self._phases[self._step % BLOCK_SIZE]
        if needed:
            self.cache.take(needed)

    def _preempt(self) -> None:
        decoding = (each for _, _, each in self._ends if not each.is_gone)
        latest = max((*self._prefilling, *decoding), key=lambda running: running.rank)
        self.preemptions += 1
        made = self._leave(latest)
        latest.is_gone = True
        self.waiting.appendleft((latest.rank, latest.job, made))

    def _finish(self, running: _Running, now: float) -> None:
        steps = self._step - running.started_step
        running.made += steps - 1
        self._end(running, self._drop(running), now)

    def _leave(self, running: _Running) -> int:
        """Take a sequence out with what it has made; what of its prompt is findable stays so."""
        if running in self._prefilling:
            self._prefilling.remove(running)
            grown = 0
        else:
            running.made += self._step - running.started_step
            grown = self._drop(running)
        keys = [*running.job.keys, *running.job.answer_keys][: running.findable]
        self.cache.release(keys, -(-running.length // BLOCK_SIZE) - len(keys) + grown)
        return running.made

    def _drop(self, running: _Running) -> int:
        """Stop decoding `running`; the blocks it has taken since its first token."""
        steps = self._step - running.started_step
        self._decoding -= 1
        self._phases[running.phase] -= 1
        self._context -= running.length + steps
        first = (running.phase - running.started_step) % BLOCK_SIZE
        return 0 if steps <= first else (steps - 1 - first) // BLOCK_SIZE + 1

    def _end(self, running: _Running, grown: int, now: float) -> None:
        job, cache = running.job, self.cache
        blocks = -(-running.length // BLOCK_SIZE) + grown
        known = len(job.tokens) + job.output_tokens - 1
        keys = [*job.keys, *job.answer_keys][: known // BLOCK_SIZE]
        cache.publish(keys[running.findable :])
        cache.release(keys, blocks - len(keys))
        job.ended_s = now
        if job.on_end is not None:
            job.on_end()
