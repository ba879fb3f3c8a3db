"""The tokens of one request, gathered into text: detokenizing, stop strings, logprobs."""

from collections.abc import Callable

from quire.results import CompletionOutput, Logprob, Logprobs, RequestOutput
from quire_api.sampling import SamplingParams
from quire_runtime.engine.messages import TokenLogprobs
from quire_runtime.scheduler.request import FinishReason
from quire_text.detokenize import Detokenizer
from quire_text.stop import StopMatcher
from quire_text.tokenizer import Tokenizer

REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "abort",
    FinishReason.ERROR: "error",
}


class Collector:
    """One request's outputs as they come."""

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._request_id = request_id
        self._prompt = prompt
        self._prompt_token_ids = prompt_token_ids
        self._tokenizer = tokenizer
        self._choices = [Choice(index, prompt_token_ids, params, tokenizer) for index in range(params.n)]
        self._running = params.n
        self._cached: int | None = None
        self._prompt_logprobs: list[Logprobs | None] | None = None if params.prompt_logprobs is None else [None]

    @property
    def is_done(self) -> bool:
        return self._running == 0

    @property
    def append(self) -> Callable[[int], None] | None:
        """Takes a token that neither is the first nor ends anything; None where a token is more than that."""
        only = self._choices[0]
        return only.output.token_ids.append if len(self._choices) == 1 and only.is_plain else None

    def add(self, choice: int, token: int, finish: int, cached: int, logprobs: TokenLogprobs | None) -> None:
        """One entry of an engine step."""
        if cached >= 0 and self._cached is None:
            self._cached = cached
        one = self._choices[choice]
        if not one.is_done:
            one.add(token, finish, logprobs)
            self._running -= one.is_done

    def add_prompt_logprobs(self, positions: list[TokenLogprobs]) -> None:
        if self._prompt_logprobs is not None:
            self._prompt_logprobs += [as_dict(position, self._tokenizer) for position in positions]

    def is_stopped(self, choice: int) -> bool:
        """The choice has its text; tokens that still come are not part of it."""
        return self._choices[choice].is_done

    def output(self) -> RequestOutput:
        return RequestOutput(
            request_id=self._request_id,
            prompt=self._prompt,
            prompt_token_ids=self._prompt_token_ids,
            prompt_logprobs=self._prompt_logprobs,
            outputs=[choice.output for choice in self._choices],
            finished=self.is_done,
            num_cached_tokens=self._cached,
        )


class Choice:
    """One choice: without stop strings its text is decoded once, at its end."""

    def __init__(
        self, index: int, prompt_token_ids: list[int], params: SamplingParams, tokenizer: Tokenizer | None
    ) -> None:
        self.output = CompletionOutput(index, "", [], None, None)
        if params.logprobs is not None:
            self.output.cumulative_logprob, self.output.logprobs = 0.0, []
        self._params = params
        self._tokenizer = tokenizer
        self._detokenizer = None
        if tokenizer is not None and params.detokenize:
            self._detokenizer = Detokenizer(tokenizer, params.skip_special_tokens, prompt_token_ids)
        self._stops = StopMatcher(params.stop, params.include_stop_str_in_output) if params.stop else None

    @property
    def is_plain(self) -> bool:
        """Until its end it gathers tokens and nothing else."""
        return self._stops is None and self.output.logprobs is None

    @property
    def is_done(self) -> bool:
        return self.output.finish_reason is not None

    def add(self, token: int, finish: int, logprobs: TokenLogprobs | None) -> None:
        output = self.output
        if token >= 0:
            output.token_ids.append(token)
        if logprobs is not None and output.logprobs is not None:
            output.logprobs.append(as_dict(logprobs, self._tokenizer))
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + logprobs.logprobs[0]
        if finish == FinishReason.STOP:
            output.stop_reason = token if token in self._params.stop_token_ids else None
        if self._stops is not None and self._detokenizer is not None:
            self._match(token, finish)
        elif finish:
            self._decode(finish)
        if finish and not self.is_done:
            output.finish_reason = REASONS[FinishReason(finish)]

    def _match(self, token: int, finish: int) -> None:
        assert self._stops is not None
        assert self._detokenizer is not None
        ids = [token] if token >= 0 and not self._is_hidden(finish) else []
        text = self._detokenizer.push(ids) + (self._detokenizer.finish() if finish else "")
        if len(self.output.token_ids) <= self._params.min_tokens:
            self.output.text += text
            return
        self.output.text += self._stops.push(text)
        if self._stops.stopped is not None:
            self.output.finish_reason, self.output.stop_reason = "stop", self._stops.stopped
        elif finish:
            self.output.text += self._stops.flush()

    def _decode(self, finish: int) -> None:
        if self._detokenizer is not None:
            ids = self.output.token_ids[:-1] if self._is_hidden(finish) else self.output.token_ids
            self.output.text = self._detokenizer.push(ids) + self._detokenizer.finish()

    def _is_hidden(self, finish: int) -> bool:
        """The token that stopped the text is no part of it."""
        return finish == FinishReason.STOP and not self._params.include_stop_str_in_output


def as_dict(position: TokenLogprobs, tokenizer: Tokenizer | None) -> Logprobs:
    """The chosen token first, then the likeliest ones, as vLLM orders them."""
    ranks = [position.rank, *range(1, len(position.token_ids))]
    entries: Logprobs = {}
    for token, logprob, rank in zip(position.token_ids, position.logprobs, ranks, strict=True):
        text = None if tokenizer is None else tokenizer.token_text(token)
        entries.setdefault(token, Logprob(logprob, rank, text))
    return entries
