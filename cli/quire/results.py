"""What offline generation returns: the names and shapes of vLLM's."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Logprob:
    """rank 1 is the likeliest token; decoded_token is None without a tokenizer."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


Logprobs = dict[int, Logprob]
"""Of one position: the chosen (or prompt) token, then the likeliest ones, by token id."""


@dataclass(slots=True)
class CompletionOutput:
    """One choice. finish_reason: stop, length, abort or error; stop_reason: the stop string or stop token id that ended
    it, None for the end-of-sequence token."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[Logprobs] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """One prompt and its choices. prompt_logprobs has an entry a prompt token, None at position 0."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[Logprobs | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None
