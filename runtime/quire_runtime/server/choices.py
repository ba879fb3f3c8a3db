"""One choice of an answer, grown delta by delta: text, stop strings, logprobs, the reason it ended."""

from collections.abc import Sequence

from quire_api.openai import InvalidRequest
from quire_api.replay import RESUME_FIELD
from quire_api.sampling import SamplingParams
from quire_runtime.engine.messages import TokenLogprobs
from quire_runtime.engine.stream import ChoiceDelta
from quire_runtime.scheduler.request import FinishReason
from quire_runtime.server.errors import RequestFailed
from quire_text.detokenize import Detokenizer
from quire_text.stop import StopMatcher
from quire_text.tokenizer import Tokenizer

REASONS = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.ABORT: "abort"}


class Choice:
    """What is known of one choice and not yet taken by `take`.

    has_news: there is text, or its end.
    num_tokens: sampled so far. finish_reason: None while it runs. stop_reason: the stop string or stop token id that
    ended it, None for end-of-sequence.
    """

    __slots__ = (
        "_bypass",
        "_detokenizer",
        "_fresh",
        "_include_stop",
        "_matcher",
        "_stop_ids",
        "finish_reason",
        "has_news",
        "index",
        "logprobs",
        "num_tokens",
        "stop_reason",
        "token_ids",
    )

    def __init__(self, index: int, tokenizer: Tokenizer, params: SamplingParams, prompt: Sequence[int]) -> None:
        self.index = index
        self.has_news = False
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self._fresh = ""
        self._detokenizer = Detokenizer(tokenizer, params.skip_special_tokens, prompt)
        self._matcher = StopMatcher(params.stop, params.include_stop_str_in_output) if params.stop else None
        self._bypass = params.min_tokens
        self._include_stop = params.include_stop_str_in_output
        self._stop_ids = params.stop_token_ids

    def take(self) -> tuple[str, list[int], list[TokenLogprobs]]:
        """Text, token ids and logprobs since the last call. Ids and logprobs of text still held back come with it."""
        text, ids, logprobs = self._fresh, self.token_ids, self.logprobs
        self._fresh, self.token_ids, self.logprobs = "", [], []
        self.has_news = self.finish_reason is not None
        return text, ids, logprobs

    def restore(self, token_ids: Sequence[int], *, has_ended: bool) -> None:
        """Take over what another engine made and the client has, so that only what comes after is news.

        Raises:
            InvalidRequest: the choice goes on, though these tokens end it.
        """
        if has_ended:
            self.num_tokens = len(token_ids)
            self.finish_reason = "stop"
            self.has_news = True
            return
        # One by one, as they came: a stop string does not count before min_tokens.
        for token in token_ids:
            self.push(ChoiceDelta(self.index, [token]))
        if self.finish_reason is not None:
            raise InvalidRequest("A choice to go on with has met its stop string already.", RESUME_FIELD)
        self.take()

    def push_plain(self, token_ids: Sequence[int]) -> str:
        """`push` and `take`, where nothing but text is asked for, and neither these tokens nor their text end it."""
        self.num_tokens += len(token_ids)
        return self._detokenizer.push(token_ids)

    def push(self, delta: ChoiceDelta) -> None:
        """Not after its end.

        Raises:
            RequestFailed: the engine ended the request with an error.
        """
        ids = delta.token_ids
        self.num_tokens += len(ids)
        self.token_ids += ids
        if delta.logprobs:
            self.logprobs += delta.logprobs
        if delta.finish:
            text = self._end(delta)
        else:
            text = self._detokenizer.push(ids)
            if self._matcher is not None and text:
                text = self._match(text)
        self._fresh += text
        if text or self.finish_reason is not None:
            self.has_news = True

    def _end(self, delta: ChoiceDelta) -> str:
        if delta.finish == FinishReason.ERROR:
            raise RequestFailed(delta.error or "The engine ended this request.")
        ids = delta.token_ids
        self.finish_reason = REASONS[delta.finish]
        if delta.finish == FinishReason.STOP and ids:
            self.stop_reason = ids[-1] if ids[-1] in self._stop_ids else None
            ids = ids if self._include_stop else ids[:-1]
        text = self._detokenizer.push(ids) + self._detokenizer.finish()
        if self._matcher is None:
            return text
        text = self._match(text)
        return text if self._matcher.stopped is not None else text + self._matcher.flush()

    def _match(self, text: str) -> str:
        assert self._matcher is not None
        if self.num_tokens <= self._bypass:
            return text
        text = self._matcher.push(text)
        if self._matcher.stopped is not None:
            self.finish_reason = "stop"
            self.stop_reason = self._matcher.stopped
        return text
