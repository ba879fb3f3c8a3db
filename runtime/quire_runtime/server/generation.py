"""The work of one request in the engine: its prompts and their choices, step by step."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Self, TypeVar

from msgspec.structs import replace

from quire_api.openai import InvalidRequest
from quire_api.replay import RESUME_FIELD
from quire_api.sampling import SamplingParams
from quire_runtime.engine.client import ChoiceDelta
from quire_runtime.engine.errors import EngineDied, RequestRefused
from quire_runtime.engine.messages import RequestTimes, TokenLogprobs
from quire_runtime.server.choices import Choice
from quire_runtime.server.errors import RequestFailed
from quire_runtime.server.replay import Replay
from quire_runtime.server.service import Service

T = TypeVar("T")


class Generation:
    """Several prompts, n choices each; choice i of prompt p has index p * n + i.

    Use it as an async context: leaving it early aborts what still runs and frees its blocks.
    cached_tokens: prompt tokens found in the prefix cache, over all prompts.
    replay: what of it another engine has made; choices that have ended there do not run.
    offsets: characters that the client has of each choice from there.
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
        streams = [
            self._of_prompt(
                index,
                client.generate(
                    prompt,
                    self._seeded(index),
                    request_id if len(prompts) == 1 else f"{request_id}-{index}",
                    priority,
                    cache_salt,
                    *self._made(index),
                ),
            )
            for index, prompt in enumerate(prompts)
            if any(choice.finish_reason is None for choice in self._of(index))
        ]
        self._steps = streams[0] if len(streams) == 1 else merge(streams)
        self._first: list[Choice] | None = None
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

    async def start(self) -> None:
        """Wait for the first step, so that a refusal is known before the answer begins.

        Raises:
            RequestRefused, RequestFailed, EngineDied
        """
        self._first = await anext(self._steps, [])

    async def steps(self) -> AsyncGenerator[list[Choice], None]:
        """The choices that each step changed; several steps at once when the reader is slow.

        Raises:
            RequestFailed, EngineDied
        """
        if self._first is not None:
            yield self._first
        async for touched in self._steps:
            yield touched

    async def finish(self) -> None:
        """Run to the end of every choice."""
        await self.start()
        async for _ in self.steps():
            pass

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            await self._steps.aclose()
        finally:
            self._record()
            self._service.leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _of(self, prompt: int) -> list[Choice]:
        return self.choices[prompt * self._n : (prompt + 1) * self._n]

    def _restore(self) -> None:
        so_far = self.replay.so_far
        if len(so_far.choices) > len(self.choices):
            raise InvalidRequest(f"{RESUME_FIELD} has more choices than the request.", RESUME_FIELD)
        for choice, before in zip(self.choices, so_far.choices, strict=False):
            choice.restore(before.output_token_ids, has_ended=before.has_ended)
        self.offsets = [choice.text_length for choice in self.choices]

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

    async def _of_prompt(
        self, index: int, stream: AsyncGenerator[list[ChoiceDelta], None]
    ) -> AsyncGenerator[list[Choice], None]:
        choices = self._of(index)
        running = sum(choice.finish_reason is None for choice in choices)
        try:
            async with aclosing(stream):
                async for deltas in stream:
                    self._observe(index, deltas)
                    touched: list[Choice] = []
                    for delta in deltas:
                        choice = choices[delta.choice]
                        if choice.finish_reason is None:
                            choice.push(delta)
                            running -= choice.finish_reason is not None
                            if not touched or touched[-1] is not choice:
                                touched.append(choice)
                    if touched:
                        yield touched
                    if running == 0:
                        break
        except RequestRefused as error:
            self._unfinished = None
            self._metrics.rejections[error.code] += 1
            raise
        except (RequestFailed, EngineDied):
            self._unfinished = "error"
            raise

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


async def merge(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """The items of all streams as they come; the first error ends all of them."""
    items: asyncio.Queue[T | Exception | None] = asyncio.Queue()

    async def pump(stream: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    items.put_nowait(item)
            items.put_nowait(None)
        except Exception as error:
            items.put_nowait(error)

    tasks = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        running = len(tasks)
        while running:
            item = await items.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
