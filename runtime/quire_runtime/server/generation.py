"""The work of one request in the engine: its prompts and their choices, step by step."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Self

from msgspec.structs import replace

from quire_api.openai import InvalidRequest
from quire_api.replay import RESUME_FIELD
from quire_api.sampling import SamplingParams
from quire_runtime.engine.errors import RequestRefused
from quire_runtime.engine.messages import RequestTimes, TokenLogprobs
from quire_runtime.engine.request import EngineRequest
from quire_runtime.engine.stream import ChoiceDelta, Stream
from quire_runtime.server.choices import Choice
from quire_runtime.server.replay import Replay
from quire_runtime.server.service import Service


class Part:
    """One prompt of a generation, and what becomes of it.

    running: choices that have not ended. stream: none if all have ended elsewhere. is_direct: what comes may be dealt
    with where it comes in, as nothing older is left. last_at: when the last news came, 0 before the first. timed: the
    engine's times, and when they came. In monotonic seconds.
    """

    __slots__ = ("choices", "is_direct", "last_at", "prompt", "prompt_logprobs", "running", "stream", "timed")

    def __init__(self, prompt: list[int], choices: list[Choice]) -> None:
        self.prompt = prompt
        self.choices = choices
        self.running = sum(choice.finish_reason is None for choice in choices)
        self.stream: Stream | None = None
        self.is_direct = False
        self.last_at = 0.0
        self.timed: tuple[RequestTimes, float] | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None


class Generation:
    """Several prompts, n choices each; choice i of prompt p has index p * n + i.

    Use it as a context: leaving it early aborts what still runs and frees its blocks.
    is_over: nothing more comes, because every choice has ended or one has failed.
    first: the choices that the first step has changed, once `start` has returned.
    cached_tokens: prompt tokens found in the prefix cache, over all prompts.
    replay: what of it another engine has made; choices that have ended there do not run.
    """

    def __init__(
        self,
        service: Service,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        *,
        request_id: str,
        arrived: float,
        priority: int = 0,
        cache_salt: str = "",
        replay: Replay | None = None,
    ) -> None:
        """
        Raises:
            InvalidRequest: what is to be resumed is not of this request.
            NotReady
        """
        client, tokenizer = service.client, service.tokenizer
        self.prompts = prompts
        self._params = params
        self.replay = replay or Replay()
        self.cached_tokens = self.replay.so_far.cached_tokens
        self.choices = [
            Choice(prompt_index * params.n + choice, tokenizer, params, prompt)
            for prompt_index, prompt in enumerate(prompts)
            for choice in range(params.n)
        ]
        self._restore()
        self._service = service
        self.metrics = service.metrics
        self._arrived = arrived
        self._first_at: float | None = None
        self._is_closed = False
        self._unfinished: str | None = "abort"
        n = params.n
        self._parts = [Part(prompt, self.choices[index * n : (index + 1) * n]) for index, prompt in enumerate(prompts)]
        self._left = sum(part.running for part in self._parts)
        self.is_over = not self._left
        self._fresh: deque[Part] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._on_news: Callable[[], bool] | None = None
        for index, part in enumerate(self._parts):
            if part.running:
                outputs, ended = self._made(part)
                request = EngineRequest(
                    part.prompt,
                    self._seeded(index),
                    request_id if len(prompts) == 1 else f"{request_id}-{index}",
                    priority,
                    cache_salt,
                    outputs,
                    ended,
                )
                part.stream = client.open(request)
                part.stream.call_on_news(partial(self._hear, part))
        self.first: list[Choice] = []
        service.enter()

    @property
    def single(self) -> Part | None:
        """The one part of one choice that only the engine ends; None where there is more to it."""
        return None if len(self.choices) > 1 or self._params.stop else self._parts[0]

    @property
    def prompt_logprobs(self) -> list[list[TokenLogprobs | None] | None]:
        """By prompt; None where there are none."""
        return [part.prompt_logprobs for part in self._parts]

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def completion_tokens(self) -> int:
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def begun(self) -> list[int]:
        """Choices whose first event the client has from another engine."""
        return [index for index, choice in enumerate(self.replay.so_far.choices) if choice.has_begun]

    @property
    def has_news(self) -> bool:
        """Something has come that `advance` has not taken."""
        return bool(self._fresh)

    async def start(self) -> None:
        """Wait for the first step, so that a refusal is known before the answer begins.

        Raises:
            RequestRefused, RequestFailed, EngineDied
        """
        while not (self.first or self.is_over):
            if not self._fresh:
                await self.news()
            self.first = self.advance()

    async def news(self, on_news: Callable[[], bool] | None = None) -> None:
        """Wait for news that is left to the caller.

        on_news: called with each piece of news, where it came in; True if it has dealt with it. What it raises is
        raised here. Parts are direct as long as it has dealt with all.
        """
        self._waiter = asyncio.get_running_loop().create_future()
        self._on_news = on_news
        self._make_direct(on_news is not None)
        try:
            await self._waiter
        finally:
            self._waiter = self._on_news = None
            self._make_direct(False)

    def break_off(self, error: Exception) -> None:
        """Raise this out of `news`."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self._make_direct(False)

    async def finish(self) -> None:
        """Run to the end of every choice."""
        await self.start()

        def take() -> bool:
            while self.has_news and not self.is_over:
                self.advance()
            return not self.is_over

        if take():
            await self.news(take)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for part in self._parts:
            if part.stream is not None:
                part.stream.close()
        self._record()
        self._service.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _restore(self) -> None:
        so_far = self.replay.so_far
        if len(so_far.choices) > len(self.choices):
            raise InvalidRequest(f"{RESUME_FIELD} has more choices than the request.", RESUME_FIELD)
        for choice, before in zip(self.choices, so_far.choices, strict=False):
            choice.restore(before.output_token_ids, has_ended=before.has_ended)

    def _seeded(self, prompt: int) -> SamplingParams:
        seed = self.replay.seed_of(prompt)
        return self._params if seed is None or self._params.seed is not None else replace(self._params, seed=seed)

    def _made(self, part: Part) -> tuple[list[list[int]], list[int]]:
        """Outputs so far and the choices ended, as the engine takes them; nothing where nothing was begun."""
        before = [self.replay.before(choice.index) for choice in part.choices]
        if not any(choice.has_begun for choice in before):
            return [], []
        ended = [index for index, choice in enumerate(before) if choice.has_ended]
        return [choice.output_token_ids for choice in before], ended

    def _hear(self, part: Part) -> None:
        self._fresh.append(part)
        if self._waiter is None or self._waiter.done():
            return
        try:
            if self._on_news is None or not self._on_news():
                self._waiter.set_result(None)
                self._make_direct(False)
        except Exception as error:
            self.break_off(error)

    def _make_direct(self, is_direct: bool) -> None:
        for part in self._parts:
            part.is_direct = is_direct

    def advance(self) -> list[Choice]:
        """Take what has come for one prompt; its failure only once nothing else is left.

        The choices that were changed by it, which may be none.

        Raises:
            RequestRefused: instead of the first step.
            RequestFailed, EngineDied
        """
        if not self._fresh:
            return []
        part = self._fresh.popleft()
        if not part.running:
            return []
        assert part.stream is not None
        try:
            deltas = part.stream.take()
            if part.stream.has_failed:
                self._fresh.append(part)
            return self._push(part, deltas) if deltas else []
        except RequestRefused as error:
            self._unfinished, self.is_over = None, True
            self.metrics.rejections[error.code] += 1
            raise
        except Exception:
            self._unfinished, self.is_over = "error", True
            raise

    def _push(self, part: Part, deltas: list[ChoiceDelta]) -> list[Choice]:
        self._observe(part, deltas)
        # Deltas of several steps may come at once: each choice is then told of once.
        touched: dict[int, Choice] = {}
        for delta in deltas:
            choice = part.choices[delta.choice]
            if choice.finish_reason is not None:
                continue
            choice.push(delta)
            if choice.finish_reason is not None:
                part.running -= 1
                self._left -= 1
            touched[delta.choice] = choice
        if not part.running:
            assert part.stream is not None
            part.stream.close()
            self.is_over = not self._left
        return list(touched.values())

    def _observe(self, part: Part, deltas: list[ChoiceDelta]) -> None:
        now = time.monotonic()
        first = deltas[0]
        if first.prompt_logprobs is not None:
            part.prompt_logprobs = first.prompt_logprobs
        if first.cached_tokens is not None and not any(
            self.replay.before(choice.index).has_begun for choice in part.choices
        ):
            self.cached_tokens += first.cached_tokens
        if first.times is not None:
            part.timed = (first.times, now)
        if last := part.last_at:
            steps = sum(delta.choice == first.choice for delta in deltas) if len(deltas) > 1 else 1
            self.metrics.itl.observe((now - last) / steps, len(deltas))
        else:
            self.metrics.ttft.observe(now - self._arrived)
            self._first_at = self._first_at or now
        part.last_at = now

    def _record(self) -> None:
        metrics, params = self.metrics, self._params
        for choice in self.choices:
            if self.replay.before(choice.index).has_ended:
                continue
            if (reason := choice.finish_reason or self._unfinished) is not None:
                metrics.outcomes[reason] += 1
        if self._first_at is None:
            return
        made = self.completion_tokens - self.replay.so_far.output_tokens
        metrics.prompt_tokens += self.prompt_tokens
        metrics.cached_tokens += self.cached_tokens
        metrics.generated_tokens += made
        metrics.choices.observe(params.n)
        if params.max_tokens is not None:
            metrics.max_tokens.observe(params.max_tokens)
        for part in self._parts:
            metrics.prompt_lengths.observe(len(part.prompt))
            if part.timed is None:
                continue
            times, first_at = part.timed
            decode_s = part.last_at - first_at
            metrics.queue_time.observe(times.queue_s)
            metrics.prefill_time.observe(times.prefill_s)
            metrics.decode_time.observe(decode_s)
            metrics.inference_time.observe(times.prefill_s + decode_s)
        for choice in self.choices:
            metrics.output_lengths.observe(choice.num_tokens)
        last = max(part.last_at for part in self._parts)
        metrics.e2e.observe(last - self._arrived)
        longest = max(choice.num_tokens for choice in self.choices)
        if longest > 1:
            metrics.tpot.observe((last - self._first_at) / (longest - 1))
