"""Requests of the HTTP API in types, checked on the way in; what goes out is in openai_responses.

Field names and meanings are OpenAI's, plus the extensions that clients of vLLM already send. A field that would change
the answer's meaning and that we do not have is refused, never ignored; other unknown fields are reported by
`unknown_fields`.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quire_api.errors import UserError
from quire_api.sampling import InvalidSampling, SamplingParams

T = TypeVar("T")
Many = Annotated[list[T], Field(fail_fast=True)]
"""A list of which the first wrong item is told: millions of them would cost a minute of collecting mistakes."""

DEFAULT_COMPLETION_TOKENS = 16
MAX_PROMPTS = 2048
MAX_CHOICES_IN_ALL = 4096

# Extensions and OpenAI fields that change what comes back, each with the values that change nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "logits_processors": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_embeds": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "suffix": ("",),
    "thinking_token_budget": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}
_SHAPES = {
    "prompt": "a text, a list of texts, a list of token ids, or a list of lists of token ids",
    "stop": "a text or a list of texts",
}
_TYPES = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "an object",
    "string_type": "a text",
}
"""What to send, by pydantic's word for a value of another type."""
_BOUNDS = {"greater_than_equal": "at least {ge}", "less_than_equal": "at most {le}", "less_than": "below {lt}"}
PRIORITIES = range(-(2**31), 2**31)
_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop_token_ids",
    "include_stop_str_in_output",
    "min_tokens",
    "ignore_eos",
    "skip_special_tokens",
    "prompt_logprobs",
    "n",
)
_GENERATION_CONFIG_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class InvalidRequest(UserError):
    """The request cannot be served as it is; `param` names the field, `code` is OpenAI's word for the mistake."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    @classmethod
    def parse(cls, body: Any) -> Self:
        """Check a parsed JSON body.

        Raises:
            InvalidRequest: the first field that does not fit.
        """
        if not isinstance(body, dict):
            raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
        try:
            request = cls.model_validate(body)
        except ValidationError as error:
            raise _first_problem(error) from None
        for name, harmless in _UNSUPPORTED.items():
            value = body.get(name)
            if value is not None and value not in harmless:
                raise InvalidRequest(f"{name} is not supported by this server. Leave it out.", name, "unsupported")
        request.check()
        return request

    def check(self) -> None:
        """Refuse what types cannot say."""

    def unknown_fields(self) -> list[str]:
        return sorted(set(self.model_extra or ()) - _UNSUPPORTED.keys())


class StreamOptions(_Request):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class _Generation(_Request):
    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | Many[str] | None = None
    user: str | None = None
    max_tokens: int | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Many[int] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = False
    return_tokens_as_token_ids: bool | None = False
    truncate_prompt_tokens: Annotated[int, Field(ge=-1)] | None = None
    priority: Annotated[int, Field(ge=PRIORITIES[0], le=PRIORITIES[-1])] | None = None
    cache_salt: str | None = None
    request_id: str | None = None

    def check(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream to be true.", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequest("prompt_logprobs needs stream to be false.", "prompt_logprobs")
        if self.truncate_prompt_tokens == 0:
            raise InvalidRequest("truncate_prompt_tokens must be at least 1, or -1.", "truncate_prompt_tokens")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats


class ContentPart(_Request):
    type: str
    text: str | None = None


class ChatMessage(_Request):
    role: str
    content: str | Many[ContentPart | str] | None = None


class ChatCompletionRequest(_Generation):
    messages: Many[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    echo: bool | None = False

    def check(self) -> None:
        super().check()
        if self.tools and self.tool_choice != "none":
            raise InvalidRequest(
                'Tools are not supported by this server. Leave tools out, or set tool_choice to "none".',
                "tools",
                "unsupported",
            )
        if self.tool_choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice needs tools, which this server does not support.", "tool_choice")
        if self.echo:
            raise InvalidRequest("echo is supported by /v1/completions only.", "echo", "unsupported")
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true.", "top_logprobs")
        _check_messages(self.messages)

    @property
    def sampled_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Generation):
    prompt: str | Many[str] | Many[int] | Many[Many[int]]
    logprobs: int | None = None
    echo: bool | None = False
    add_special_tokens: bool | None = True

    def check(self) -> None:
        super().check()
        if not self.prompt or not all(self.prompts):
            raise InvalidRequest("prompt is empty. Send a text or token ids.", "prompt")
        if len(self.prompts) > MAX_PROMPTS:
            raise InvalidRequest(f"prompt holds more than {MAX_PROMPTS} prompts. Send several requests.", "prompt")
        if len(self.prompts) * (self.n or 1) > MAX_CHOICES_IN_ALL:
            raise InvalidRequest(f"n times the number of prompts is above {MAX_CHOICES_IN_ALL}. Ask for fewer.", "n")
        if self.stream and self.echo and self.logprobs is not None:
            raise InvalidRequest("echo with logprobs needs stream to be false.", "echo")

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast("list[str] | list[list[int]]", self.prompt)

    @property
    def is_echo_only(self) -> bool:
        """The prompt alone is asked for (its logprobs, usually): one token is made and thrown away."""
        return bool(self.echo) and self.max_tokens == 0


class TokenizeRequest(_Request):
    """Either `prompt` or `messages` with the fields of a chat request."""

    model: str | None = None
    prompt: str | None = None
    messages: Many[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    return_token_strs: bool | None = False

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("Send either prompt or messages.", "prompt")
        _check_messages(self.messages or [])


class DetokenizeRequest(_Request):
    model: str | None = None
    tokens: Many[Annotated[int, Field(ge=0, lt=2**32)]]


def sampling_params(request: ChatCompletionRequest | CompletionRequest, defaults: Mapping[str, Any]) -> SamplingParams:
    """The one place where a request becomes sampling parameters.

    defaults: what fields mean that the request leaves out (see `default_sampling`).

    Raises:
        InvalidSampling: `param` is the field as the request names it.
    """
    values = dict(defaults)
    for name in _SAMPLING_FIELDS:
        if (value := getattr(request, name)) is not None:
            values[name] = value
    if isinstance(request, ChatCompletionRequest):
        asked = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        values["max_tokens"] = defaults.get("max_tokens") if asked is None else asked
        values["logprobs"] = request.sampled_logprobs
    else:
        fallback = defaults.get("max_tokens", DEFAULT_COMPLETION_TOKENS)
        values["max_tokens"] = fallback if request.max_tokens is None else request.max_tokens
        values["logprobs"] = request.logprobs
        if request.is_echo_only:
            values["max_tokens"] = 1
        if request.echo and request.logprobs is not None:
            values["prompt_logprobs"] = max(request.logprobs, request.prompt_logprobs or 0)
    if request.stop is not None:
        values["stop"] = [request.stop] if isinstance(request.stop, str) else request.stop
    if request.logit_bias:
        values["logit_bias"] = _token_keys(request.logit_bias)
    try:
        return SamplingParams(**values)
    except InvalidSampling as error:
        asked_as = _asked_as(request, error.param)
        raise InvalidSampling(asked_as, str(error).replace(error.param, asked_as, 1)) from None


def default_sampling(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults of `sampling_params` from a model's generation_config.json."""
    found = {name: generation_config.get(name) for name in _GENERATION_CONFIG_FIELDS}
    found["max_tokens"] = generation_config.get("max_new_tokens")
    kept = {name: value for name, value in found.items() if value is not None}
    SamplingParams(**kept)
    return kept


def _asked_as(request: ChatCompletionRequest | CompletionRequest, param: str) -> str:
    """The field of `request` that became the sampling parameter `param`."""
    if isinstance(request, ChatCompletionRequest):
        if param == "logprobs":
            return "top_logprobs"
        if param == "max_tokens" and request.max_completion_tokens is not None:
            return "max_completion_tokens"
    return param


def _check_messages(messages: list[ChatMessage]) -> None:
    for position, message in enumerate(messages):
        if message.content is None and message.role in ("system", "developer", "user"):
            name = f"messages[{position}].content"
            raise InvalidRequest(f"{name} is required in a {message.role} message.", name, "missing_required_parameter")
        if not isinstance(message.content, list):
            continue
        for part in message.content:
            if isinstance(part, ContentPart) and (part.type != "text" or part.text is None):
                what = "has no text" if part.type == "text" else f"is of type {part.type!r}"
                raise InvalidRequest(
                    f"A part of messages[{position}].content {what}; this server takes text only.",
                    f"messages[{position}].content",
                    "unsupported",
                )


def _token_keys(bias: Mapping[str, float]) -> dict[int, float]:
    try:
        return {int(token): value for token, value in bias.items()}
    except ValueError:
        raise InvalidSampling("logit_bias", "logit_bias must map token ids to numbers.") from None


def _first_problem(error: ValidationError) -> InvalidRequest:
    """Of a union's problems pydantic lists one per member; the deepest is the one that was meant."""
    problem = max(error.errors(include_url=False), key=lambda entry: len(entry["loc"]))
    path = ""
    for step in problem["loc"]:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step.isidentifier() and step not in ("str", "int", "ContentPart"):
            path += f".{step}" if path else step
    if problem["type"] == "missing":
        return InvalidRequest(f"{path} is required.", path, "missing_required_parameter")
    field = str(problem["loc"][0])
    if field in _SHAPES:
        return InvalidRequest(f"{field} must be {_SHAPES[field]}.", field, "invalid_type")
    if bound := _BOUNDS.get(problem["type"]):
        return InvalidRequest(f"{path} must be {bound.format(**problem['ctx'])}.", path)
    wanted = _TYPES.get(problem["type"]) or problem["msg"].removeprefix("Input should be ")
    return InvalidRequest(f"{path} must be {wanted}.", path, "invalid_type")
