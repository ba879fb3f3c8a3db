"""Offline use: a model in this process, prompts in, texts out; a drop-in for vLLM's LLM."""

import gc
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from quire.collect import Collector
from quire.results import RequestOutput
from quire_api.errors import UserError
from quire_api.sampling import SamplingParams
from quire_runtime.config import EngineConfig
from quire_runtime.engine.engine import Engine, EngineOutputs
from quire_runtime.engine.source import model_directory
from quire_text.chat import render
from quire_text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
Message = Mapping[str, Any]
UNBOUNDED = 2**31 - 1


_OF_OTHER_MODELS = frozenset({"beam_search", "classify", "embed", "encode", "reward", "score"})
"""What vLLM's LLM has beside."""


class NotOffered(UserError, AttributeError):
    """A method of vLLM's for models, or ways to write, that Quire does not have."""


class InvalidPrompt(UserError):
    """A prompt of a kind that `generate` does not take."""


class LLM:
    """A model that generates for whole lists of prompts at once.

    Arguments are those of EngineConfig, under vLLM's names. One thread at a time may use it.
    """

    def __init__(self, model: str | Path, *, tokenizer: str | Path | None = None, **engine_args: Any) -> None:
        """
        Raises:
            UserError: a setting is wrong, or the model is missing, malformed, unsupported or too large.
        """
        engine_args.setdefault("max_num_queued_reqs", UNBOUNDED)
        config = EngineConfig.of(
            model=str(model), tokenizer=None if tokenizer is None else str(tokenizer), **engine_args
        )
        directory = model_directory(config)
        self.config = config.model_copy(update={"model": str(directory)})
        self.tokenizer = None if config.skip_tokenizer_init else Tokenizer.from_directory(config.tokenizer or directory)
        self.engine = Engine(self.config)
        self._handles = itertools.count(1)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """One output a prompt, in their order.

        prompts: text, a list of token ids, {"prompt": text} or {"prompt_token_ids": [...]}, or a list of these.
        sampling_params: for all prompts, or one each; None takes the model's own defaults.

        Raises:
            UserError: a prompt cannot be run (nothing is), for example because it exceeds the window.
        """
        asked = self._as_list(prompts)
        params = self._params(sampling_params, len(asked))
        return self._run([self._tokens(prompt) for prompt in asked], params, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers to one conversation or to a list of them."""
        tokenizer = self.get_tokenizer()
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        for conversation in conversations:
            if isinstance(conversation, str) or not all(isinstance(message, Mapping) for message in conversation):
                raise InvalidPrompt(
                    'chat takes a list of messages such as {"role": "user", "content": "..."}, or a list of such lists.'
                )
        texts = [
            render(
                tokenizer,
                conversation,  # type: ignore[arg-type]
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template=chat_template,
                template_kwargs=chat_template_kwargs,
                tools=tools,
            )
            for conversation in conversations
        ]
        prompts: list[tuple[str | None, list[int]]] = [
            (text, tokenizer.encode(text, add_special_tokens=False)) for text in texts
        ]
        return self._run(prompts, self._params(sampling_params, len(prompts)), use_tqdm)

    def __getattr__(self, name: str) -> Any:
        if name in _OF_OTHER_MODELS:
            raise NotOffered(f"LLM has no {name}: Quire writes text, by sampling. Use generate or chat.")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def get_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidPrompt("This LLM was made with skip_tokenizer_init=True; pass prompts as prompt_token_ids.")
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """The model's own, from its generation_config.json, unless generation_config is "vllm"."""
        defaults = self.engine.loaded.model_config.sampling_defaults
        if self.config.generation_config == "vllm":
            return SamplingParams()
        named: dict[str, Any] = {
            "temperature": defaults.temperature,
            "top_p": defaults.top_p,
            "top_k": defaults.top_k,
            "min_p": defaults.min_p,
            "repetition_penalty": defaults.repetition_penalty,
            "max_tokens": defaults.max_new_tokens,
        }
        return SamplingParams(**{name: value for name, value in named.items() if value is not None})

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes; False if the engine is busy."""
        return self.engine.reset_prefix_cache()

    def _run(
        self, prompts: list[tuple[str | None, list[int]]], params: list[SamplingParams], use_tqdm: bool
    ) -> list[RequestOutput]:
        collectors: dict[int, Collector] = {}
        try:
            for (text, token_ids), asked in zip(prompts, params, strict=True):
                handle = next(self._handles)
                self.engine.add(handle, token_ids, asked)
                collectors[handle] = Collector(str(handle), text, token_ids, asked, self.tokenizer)
            waiting = set(collectors)
            plain = {handle: append for handle, one in collectors.items() if (append := one.append) is not None}
            with _progress(len(waiting), use_tqdm) as advance, _young_garbage_only():
                while waiting:
                    outputs = self.engine.step()
                    if outputs is not None:
                        advance(*self._collect(outputs, collectors, waiting, plain))
        finally:
            for handle, collector in collectors.items():
                if not collector.is_done:
                    self.engine.abort(handle)
        return [collector.output() for collector in collectors.values()]

    def _collect(
        self,
        outputs: EngineOutputs,
        collectors: dict[int, Collector],
        waiting: set[int],
        plain: dict[int, Callable[[int], None]],
    ) -> tuple[int, int]:
        """(requests that ended, tokens that came); plain: where tokens of requests go that want nothing but tokens."""
        for part in outputs.prompt_logprobs:
            if part.handle in collectors:
                collectors[part.handle].add_prompt_logprobs(part.positions)
        logprobs = outputs.logprobs or itertools.repeat(None)
        columns = (outputs.handles, outputs.choices, outputs.tokens, outputs.finish, outputs.cached)
        ended = 0
        for (handle, choice, token, finish, cached), logprob in zip(
            zip(*(column.tolist() for column in columns), strict=True), logprobs, strict=False
        ):
            if not finish and cached < 0 and (append := plain.get(handle)) is not None:
                append(token)
                continue
            if handle not in waiting:
                continue
            collector = collectors[handle]
            collector.add(choice, token, finish, cached, logprob)
            if collector.is_stopped(choice) and not finish:
                self.engine.abort(handle, choice)
            if collector.is_done:
                ended += 1
                waiting.remove(handle)
                plain.pop(handle, None)
        return ended, len(outputs.handles)

    def _as_list(self, prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
        if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
            return [prompts]
        listed = list(prompts)
        return [listed] if listed and isinstance(listed[0], int) else listed  # type: ignore[list-item, return-value]

    def _params(
        self, sampling_params: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if sampling_params is None:
            sampling_params = self.get_default_sampling_params()
        if isinstance(sampling_params, SamplingParams):
            return [sampling_params] * count
        if len(sampling_params) != count:
            raise InvalidPrompt(
                f"There are {count} prompts but {len(sampling_params)} sampling_params. Pass one for all, or one each."
            )
        return list(sampling_params)

    def _tokens(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, Mapping):
            if "prompt_token_ids" in prompt:
                return prompt.get("prompt"), list(prompt["prompt_token_ids"])
            if "prompt" not in prompt:
                raise InvalidPrompt('A prompt given as a dict needs "prompt" or "prompt_token_ids".')
            prompt = prompt["prompt"]
        if isinstance(prompt, str):
            return prompt, self.get_tokenizer().encode(prompt)
        if isinstance(prompt, int) or not isinstance(prompt, Iterable):
            raise InvalidPrompt(f"A prompt is a text, a list of token ids or a dict; this one is {prompt!r}.")
        return None, list(prompt)


@contextmanager
def _young_garbage_only() -> Iterator[None]:
    """Spare the collector everything that exists now: walking through it stops the GPU for a tenth of a second."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Any]:
    """Yields advance(requests, tokens)."""
    if not shown:
        yield lambda requests, new_tokens: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]:.0f} tokens/s"),
    )
    with Progress(*columns, transient=False) as progress:
        task = progress.add_task("Generating", total=total, rate=0.0)
        tokens = 0

        def advance(requests: int, new_tokens: int) -> None:
            nonlocal tokens
            tokens += new_tokens
            elapsed = progress.tasks[0].elapsed or 1e-9
            progress.update(task, advance=requests, rate=tokens / max(elapsed, 1e-9))

        yield advance
