"""The events of a streamed answer, of whatever kind."""

from collections.abc import Callable, Iterable

from quire_api.openai import ChatCompletionRequest, CompletionRequest
from quire_api.openai_responses import ChatLogprobs, CompletionLogprobs, Usage
from quire_runtime.engine.errors import EngineDied
from quire_runtime.engine.messages import TokenLogprobs
from quire_runtime.server.choices import Choice
from quire_runtime.server.errors import RequestFailed, describe
from quire_runtime.server.generation import Generation
from quire_runtime.server.protocol import Body
from quire_runtime.server.replay import Comments
from quire_runtime.server.stream import DONE, EventWriter, error_event
from quire_runtime.server.token_writer import TokenWriter
from quire_runtime.server.usage import usage_of

LogprobsOf = Callable[[Choice, list[TokenLogprobs]], ChatLogprobs | CompletionLogprobs | None]


class AnswerEvents:
    """One for each piece of news of a choice, then usage and the end."""

    def __init__(
        self,
        generation: Generation,
        ask: ChatCompletionRequest | CompletionRequest,
        writer: EventWriter,
        *,
        logprobs_of: LogprobsOf | None,
        text_of: Callable[[Choice, str], str] | None = None,
        without_output: bool = False,
    ) -> None:
        """
        logprobs_of: what is said of the positions since its last call, where they were asked for. text_of: what is
        shown for a choice's new text, where that is not the text itself. without_output: as usage_of takes it.
        """
        self._generation = generation
        self._ask = ask
        self._writer = writer
        self._logprobs_of = logprobs_of
        self._text_of = text_of
        self._without_output = without_output
        self._comments = Comments(generation.replay, generation.choices)
        self._is_plain = logprobs_of is None and not (ask.return_token_ids or ask.continuous_usage)

    def of(self, choices: Iterable[Choice]) -> bytes:
        """Of the news of these, which may be none."""
        return b"".join([self.event(choice) for choice in choices if choice.has_news])

    def event(self, choice: Choice) -> bytes:
        """Of its news."""
        text, ids, logprobs = choice.take()
        if self._text_of is not None:
            text = self._text_of(choice, text)
        if self._is_plain and choice.finish_reason is None:
            event = self._writer.plain(choice.index, text)
        else:
            ask = self._ask
            event = self._writer.full(
                choice.index,
                text,
                logprobs=None if self._logprobs_of is None else self._logprobs_of(choice, logprobs),
                finish_reason=choice.finish_reason,
                stop_reason=choice.stop_reason,
                token_ids=ids if ask.return_token_ids else None,
                usage=self._usage() if ask.continuous_usage else None,
            )
        if self._comments.is_on:
            return self._comments.of(choice, ids, self._generation.cached_tokens) + event
        return event

    def write_tokens(self, body: Body) -> None:
        """Have events that are text and nothing else written where their tokens come in, once all has begun."""
        part = self._generation.single
        if part is not None and part.stream is not None and self._is_plain and self._text_of is None:
            comments = self._comments if self._comments.is_on else None
            TokenWriter(self._generation, part, part.stream, self._writer, comments, body)

    def end(self) -> bytes:
        if not self._ask.include_usage:
            return DONE
        return self._comments.usage() + self._writer.usage(self._usage()) + DONE

    def failure(self, error: RequestFailed | EngineDied) -> bytes:
        """The end of an answer that has failed."""
        failure = describe(error)
        return self._comments.failure(failure.code or "error") + error_event(failure.body) + DONE

    def _usage(self) -> Usage:
        return usage_of(self._generation, without_output=self._without_output)
