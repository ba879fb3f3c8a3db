"""The events of a streamed answer, of whatever kind: one for each piece of news of a choice, then usage and the end."""

from collections.abc import Callable, Generator

from quire_api.openai import ChatCompletionRequest, CompletionRequest
from quire_api.openai_responses import ChatLogprobs, CompletionLogprobs
from quire_runtime.engine.errors import EngineDied
from quire_runtime.engine.messages import TokenLogprobs
from quire_runtime.server.choices import Choice
from quire_runtime.server.errors import RequestFailed, describe
from quire_runtime.server.generation import Generation
from quire_runtime.server.replay import Comments
from quire_runtime.server.stream import DONE, EventWriter, error_event
from quire_runtime.server.usage import usage_of

LogprobsOf = Callable[[Choice, list[TokenLogprobs]], ChatLogprobs | CompletionLogprobs | None]


def answer_events(
    generation: Generation,
    ask: ChatCompletionRequest | CompletionRequest,
    writer: EventWriter,
    *,
    logprobs_of: LogprobsOf | None,
    text_of: Callable[[Choice, str], str] | None = None,
    without_output: bool = False,
) -> Generator[bytes, None, None]:
    """An item for each of generation.steps(), which may be empty, and then the end.

    logprobs_of: what is said of the positions since its last call, where they were asked for. text_of: what is shown
    for a choice's new text, where that is not the text itself. without_output: as usage_of takes it.
    """
    comments = Comments(generation.replay, generation.choices)
    is_plain = logprobs_of is None and not (ask.return_token_ids or ask.continuous_usage)
    try:
        for touched in generation.steps():
            events = b""
            for choice in touched:
                if not choice.has_news:
                    continue
                text, ids, logprobs = choice.take()
                events += comments.of(choice, ids, generation.cached_tokens)
                if text_of is not None:
                    text = text_of(choice, text)
                if is_plain and choice.finish_reason is None:
                    events += writer.plain(choice.index, text)
                    continue
                events += writer.full(
                    choice.index,
                    text,
                    logprobs=None if logprobs_of is None else logprobs_of(choice, logprobs),
                    finish_reason=choice.finish_reason,
                    stop_reason=choice.stop_reason,
                    token_ids=ids if ask.return_token_ids else None,
                    usage=usage_of(generation, without_output=without_output) if ask.continuous_usage else None,
                )
            yield events
        if ask.include_usage:
            yield comments.usage() + writer.usage(usage_of(generation, without_output=without_output))
    except (RequestFailed, EngineDied) as error:
        failure = describe(error)
        yield comments.failure(failure.code or "error") + error_event(failure.body)
    yield DONE
