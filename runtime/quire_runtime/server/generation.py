"""The work of one request in the engine: its prompts and their choices, step by step."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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


class Generation:
    """Several prompts, n choices each; choice i of prompt p has index p * n + i.

    Use it as a context: leaving it early aborts what still runs and frees its blocks.
    is_over: nothing more comes, because every choice has ended or one has failed.
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
        self.prompt_logprobs: list[list[TokenLogprobs | None] | None] = [None] * len(prompts)
        self.choices = [
            Choice(prompt_index * params.n + choice, tokenizer, params, prompt)
            for prompt_index, prompt in enumerate(prompts)
            for choice in range(params.n)
        ]
        self._n = params.n
        self._restore()
        self._service = service
        self._metrics = service.metrics
        self._arrived = arrived
        self._first_at: float | None = None
        self._last_at = [0.0] * len(prompts)
        self._timed: dict[int, tuple[RequestTimes, float]] = {}
        self._is_closed = False
        self._unfinished: str | None = "abort"
        self._running = [
            sum(choice.finish_reason is None for choice in self._of(index)) for index in range(len(prompts))
        ]
        self._left = sum(self._running)
        self.is_over = not self._left
        self._fresh: deque[int] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._on_news: Callable[[], bool] | None = None
        self._streams: dict[int, Stream] = {}
        for index, prompt in enumerate(prompts):
            if self._running[index]:
                outputs, ended = self._made(index)
                request = EngineRequest(
                    prompt,
                    self._seeded(index),
                    request_id if len(prompts) == 1 else f"{request_id}-{index}",
                    priority,
                    cache_salt,
                    outputs,
                    ended,
                )
                self._streams[index] = client.open(request)
                self._streams[index].call_on_news(partial(self._hear, index))
        self._first: list[Choice] = []
        service.enter()

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
        """Something has come that `steps` has not taken."""
        return bool(self._fresh)

    async def start(self) -> None:
        """Wait for the first step, so that a refusal is known before the answer begins.

        Raises:
            RequestRefused, RequestFailed, EngineDied
        """
        while not (self._first or self.is_over):
            if not self._fresh:
                await self.news()
            self._first = self._advance()

    def steps(self) -> Iterator[list[Choice]]:
        """The choices that were changed by what has come since the item before, which may be none.

        Raises:
            RequestFailed, EngineDied
        """
        if self._first:
            first, self._first = self._first, []
            yield first
        while not self.is_over:
            yield self._advance()

    async def news(self, on_news: Callable[[], bool] | None = None) -> None:
        """Wait for news that is left to the caller.

        on_news: called with each piece of news, where it came in; True if it has dealt with it. What it raises is
        raised here.
        """
        self._waiter = asyncio.get_running_loop().create_future()
        self._on_news = on_news
        try:
            await self._waiter
        finally:
            self._waiter = self._on_news = None

    async def finish(self) -> None:
        """Run to the end of every choice."""
        await self.start()
        steps = self.steps()

        def take() -> bool:
            while self.has_news and not self.is_over:
                next(steps)
            return not self.is_over

        if take():
            await self.news(take)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for stream in self._streams.values():
            stream.close()
        self._record()
        self._service.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _of(self, prompt: int) -> list[Choice]:
        return self.choices[prompt * self._n : (prompt + 1) * self._n]

    def _restore(self) -> None:
        so_far = self.replay.so_far
        if len(so_far.choices) > len(self.choices):
            raise InvalidRequest(f"{RESUME_FIELD} has more choices than the request.", RESUME_FIELD)
        for choice, before in zip(self.choices, so_far.choices, strict=False):
            choice.restore(before.output_token_ids, has_ended=before.has_ended)

    def _seeded(self, prompt: int) -> SamplingParams:
        seed = self.replay.seed_of(prompt)
        return self._params if seed is None or self._params.seed is not None else replace(self._params, seed=seed)

    def _made(self, prompt: int) -> tuple[list[list[int]], list[int]]:
        """Outputs so far and the choices ended, as the engine takes them; nothing where nothing was begun."""
        before = [self.replay.before(choice.index) for choice in self._of(prompt)]
        if not any(choice.has_begun for choice in before):
            return [], []
        ended = [index for index, choice in enumerate(before) if choice.has_ended]
        return [choice.output_token_ids for choice in before], ended

    def _hear(self, prompt: int) -> None:
        self._fresh.append(prompt)
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        try:
            if self._on_news is None or not self._on_news():
                waiter.set_result(None)
        except Exception as error:
            waiter.set_exception(error)

    def _advance(self) -> list[Choice]:
        """Take what has come for one prompt; its failure only once nothing else is left."""
        if not self._fresh:
            return []
        prompt = self._fresh.popleft()
        if not self._running[prompt]:
            return []
        stream = self._streams[prompt]
        try:
            deltas = stream.take()
            if stream.has_failed:
                self._fresh.append(prompt)
            return self._push(prompt, deltas) if deltas else []
        except RequestRefused as error:
            self._unfinished, self.is_over = None, True
            self._metrics.rejections[error.code] += 1
            raise
        except Exception:
            self._unfinished, self.is_over = "error", True
            raise

    def _push(self, prompt: int, deltas: list[ChoiceDelta]) -> list[Choice]:
        self._observe(prompt, deltas)
        # Deltas of several steps may come at once: each choice is then told of once.
        touched: dict[int, Choice] = {}
        for delta in deltas:
            choice = self.choices[prompt * self._n + delta.choice]
            if choice.finish_reason is not None:
                continue
            choice.push(delta)
            if choice.finish_reason is not None:
                self._running[prompt] -= 1
                self._left -= 1
            touched[delta.choice] = choice
        if not self._running[prompt]:
            self._streams[prompt].close()
            self.is_over = not self._left
        return list(touched.values())

    def _observe(self, prompt: int, deltas: list[ChoiceDelta]) -> None:
        now = time.monotonic()
        first = deltas[0]
        if first.prompt_logprobs is not None:
            self.prompt_logprobs[prompt] = first.prompt_logprobs
        if first.cached_tokens is not None and not any(
            self.replay.before(choice.index).has_begun for choice in self._of(prompt)
        ):
            self.cached_tokens += first.cached_tokens
        if first.times is not None:
            self._timed[prompt] = (first.times, now)
        last = self._last_at[prompt]
        if last:
            steps = sum(delta.choice == first.choice for delta in deltas) if len(deltas) > 1 else 1
            self._metrics.itl.observe((now - last) / steps, len(deltas))
        else:
            self._metrics.ttft.observe(now - self._arrived)
            self._first_at = self._first_at or now
        self._last_at[prompt] = now

    def _record(self) -> None:
        metrics, params = self._metrics, self._params
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
        for prompt in self.prompts:
            metrics.prompt_lengths.observe(len(prompt))
        for prompt_index, (times, first_at) in self._timed.items():
            decode_s = self._last_at[prompt_index] - first_at
            metrics.queue_time.observe(times.queue_s)
            metrics.prefill_time.observe(times.prefill_s)
            metrics.decode_time.observe(decode_s)
            metrics.inference_time.observe(times.prefill_s + decode_s)
        for choice in self.choices:
            metrics.output_lengths.observe(choice.num_tokens)
        last = max(self._last_at)
        metrics.e2e.observe(last - self._arrived)
        longest = max(choice.num_tokens for choice in self.choices)
        if longest > 1:
            metrics.tpot.observe((last - self._first_at) / (longest - 1))
