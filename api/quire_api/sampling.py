"""How one request wants its tokens chosen."""

import math

import msgspec

from quire_api.errors import UserError

MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_STOP_STRINGS = 256
"""Each is looked for in every piece of text of every choice."""


class InvalidSampling(UserError):
    """A sampling parameter is out of its range; `param` names it."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class SamplingParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Sampling parameters, named and meant as vLLM's.

    temperature 0 is greedy; top_k 0 or -1, top_p 1 and min_p 0 switch their filter off. `max_tokens=None` means up to
    the model's window. `logprobs=k` returns the k likeliest tokens beside the chosen one at each position; the
    distribution reported is the model's own, before penalties and temperature. `stop` may be one text; None for a list
    means none.

    Raises:
        InvalidSampling: a value is outside its range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: list[str] = []
    stop_token_ids: list[int] = []
    include_stop_str_in_output: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        self.stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or ())
        self.stop_token_ids = list(self.stop_token_ids or ())
        self._whole("n", 1, MAX_CHOICES)
        self._real("temperature", 0.0, 100.0)
        self._real("top_p", 0.0, 1.0, open_low=True)
        self._whole("top_k", -1, 2**31 - 1)
        self._real("min_p", 0.0, 1.0)
        self._real("presence_penalty", -2.0, 2.0)
        self._real("frequency_penalty", -2.0, 2.0)
        self._real("repetition_penalty", 0.0, 1e4, open_low=True)
        self._whole("min_tokens", 0, 2**31 - 1)
        if self.max_tokens is not None:
            self._whole("max_tokens", 1, 2**31 - 1)
            if self.min_tokens > self.max_tokens:
                raise InvalidSampling("min_tokens", "min_tokens must not be above max_tokens.")
        if self.seed is not None:
            self._whole("seed", -(2**63), 2**63 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                self._whole(name, 0, MAX_LOGPROBS)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidSampling("stop", f"stop holds {len(self.stop)} strings; {MAX_STOP_STRINGS} is the limit.")
        if any(not text for text in self.stop):
            raise InvalidSampling("stop", "stop must not hold an empty string.")
        for token, bias in (self.logit_bias or {}).items():
            if token < 0:
                raise InvalidSampling("logit_bias", f"logit_bias names token {token}; token ids start at 0.")
            if not -100.0 <= bias <= 100.0:
                raise InvalidSampling("logit_bias", f"logit_bias of token {token} must lie within -100 and 100.")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    def _whole(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            bound = f"a whole number from {low} to {high}"
            if high >= 2**31 - 1:
                bound = f"at most {high}" if isinstance(value, int) and value > high else f"at least {low}"
            raise InvalidSampling(name, f"{name} must be {bound}; got {value!r}.")

    def _real(self, name: str, low: float, high: float, *, open_low: bool = False) -> None:
        value = getattr(self, name)
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not fits or not low <= value <= high or (open_low and value == low):
            above = f"above {low:g}" if open_low else f"at least {low:g}"
            raise InvalidSampling(name, f"{name} must be a number {above} and at most {high:g}; got {value!r}.")
