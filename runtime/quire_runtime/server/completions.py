"""POST /v1/completions"""

import time
from collections.abc import Sequence

from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from quire_api.openai import CompletionRequest, sampling_params
from quire_api.openai_responses import Completion, CompletionChoice, CompletionLogprobs
from quire_runtime.engine.messages import TokenLogprobs
from quire_runtime.server.body import read_json
from quire_runtime.server.choices import Choice
from quire_runtime.server.events import AnswerEvents, LogprobsOf
from quire_runtime.server.generation import Generation
from quire_runtime.server.ids import request_id_of
from quire_runtime.server.logprobs import TokenNames, completion_logprobs, prompt_logprobs
from quire_runtime.server.prompts import checked, text_prompt
from quire_runtime.server.replay import Replay, read_replay
from quire_runtime.server.request import begin, warnings
from quire_runtime.server.respond import respond
from quire_runtime.server.service import Service, service_of
from quire_runtime.server.stream import EventWriter
from quire_runtime.server.usage import usage_of

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request) -> Response:
    service = service_of(request)
    body = await read_json(request, service.config.max_body_bytes)
    replay = read_replay(request, body)
    ask = CompletionRequest.parse(body)
    model = service.model_name(ask.model)
    tokenizer, window = service.tokenizer, service.info.max_model_len
    params = sampling_params(ask, service.default_sampling)
    useful = window if ask.truncate_prompt_tokens is None else None
    prompts = []
    for prompt in ask.prompts:
        ids = (
            await text_prompt(tokenizer, prompt, ask.add_special_tokens is not False, useful)
            if isinstance(prompt, str)
            else prompt
        )
        prompts.append(checked(ids, tokenizer, ask.truncate_prompt_tokens, window))
    answer = Answer(service, ask, f"cmpl-{request_id_of(request.scope)}", model, params.n, prompts, replay)
    generation = begin(service, request, ask, prompts, params, replay)
    return await respond(request, generation, answer, warnings(ask.unknown_fields()), stream=bool(ask.stream))


class Answer:
    """How the answer to one request is written: n choices of each prompt."""

    def __init__(
        self,
        service: Service,
        ask: CompletionRequest,
        answer_id: str,
        model: str,
        n: int,
        prompts: Sequence[list[int]],
        replay: Replay,
    ) -> None:
        self._ask = ask
        self._names = TokenNames(service.tokenizer, bool(ask.return_tokens_as_token_ids))
        self._id = answer_id
        self._created = int(time.time()) if replay.terms is None else replay.terms.created
        self._model = model
        self._n = n
        self._echoes = [self._echo(service, given, ids) for given, ids in zip(ask.prompts, prompts, strict=True)]

    def whole(self, generation: Generation) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[self._choice(generation, choice) for choice in generation.choices],
            usage=usage_of(generation, without_output=self._ask.is_echo_only),
        )

    def events(self, generation: Generation) -> AnswerEvents:
        ask, begun = self._ask, generation.begun
        writer = EventWriter(
            {"id": self._id, "object": "text_completion", "created": self._created, "model": self._model},
            len(generation.choices),
            first_open=b'"text":',
            text_open=b'"text":',
            text_close=b"",
            has_usage=ask.include_usage,
            begun=begun,
        )
        echoes = {
            choice.index: self._echoes[choice.index // self._n]
            for choice in generation.choices
            if ask.echo and choice.index not in begun
        }
        is_echo_only = ask.is_echo_only

        def text_of(choice: Choice, text: str) -> str:
            return echoes.pop(choice.index, "") + ("" if is_echo_only else text)

        return AnswerEvents(
            generation,
            ask,
            writer,
            logprobs_of=None if ask.logprobs is None else self._logprobs_along(generation),
            text_of=text_of if ask.echo else None,
            without_output=is_echo_only,
        )

    def _logprobs_along(self, generation: Generation) -> LogprobsOf:
        """The logprobs of a stream's next positions, whose text offsets go on from those before."""
        names = self._names
        offsets = [
            names.lengths(generation.replay.before(choice.index).output_token_ids) for choice in generation.choices
        ]

        def logprobs_of(choice: Choice, positions: list[TokenLogprobs]) -> CompletionLogprobs | None:
            offset = offsets[choice.index]
            offsets[choice.index] += names.lengths(position.token_ids[0] for position in positions)
            return self._logprobs(positions, offset)

        return logprobs_of

    def _choice(self, generation: Generation, choice: Choice) -> CompletionChoice:
        ask = self._ask
        prompt = choice.index // self._n
        ids_before = generation.prompts[prompt]
        before = generation.prompt_logprobs[prompt]
        text, ids, logprobs = choice.take()
        if ask.is_echo_only:
            text, ids, logprobs = "", [], []
        shown: CompletionLogprobs | None = None
        if ask.logprobs is not None:
            if ask.echo:
                positions = [*(_top(before or [], ask.logprobs)), *logprobs]
                shown = completion_logprobs(positions, self._names, 0, ids_before[0])
            else:
                shown = self._logprobs(logprobs, 0)
        return CompletionChoice(
            index=choice.index,
            text=self._echoes[prompt] + text,
            logprobs=shown,
            finish_reason="length" if ask.is_echo_only else choice.finish_reason or "abort",
            stop_reason=None if ask.is_echo_only else choice.stop_reason,
            token_ids=ids if ask.return_token_ids else UNSET,
            prompt_token_ids=ids_before if ask.return_token_ids else UNSET,
            prompt_logprobs=(
                UNSET
                if ask.prompt_logprobs is None
                else prompt_logprobs(_top(before or [], ask.prompt_logprobs), self._names)
            ),
        )

    def _logprobs(self, positions: list[TokenLogprobs], offset: int) -> CompletionLogprobs | None:
        return None if self._ask.logprobs is None else completion_logprobs(positions, self._names, offset)

    def _echo(self, service: Service, given: str | list[int], ids: list[int]) -> str:
        if not self._ask.echo:
            return ""
        return given if isinstance(given, str) else service.tokenizer.decode(ids, skip_special_tokens=False)


def _top(positions: Sequence[TokenLogprobs | None], k: int) -> list[TokenLogprobs | None]:
    """Only the k likeliest beside each token: echo and prompt_logprobs may ask for different numbers."""
    return [
        position and TokenLogprobs(position.token_ids[: k + 1], position.logprobs[: k + 1], position.rank)
        for position in positions
    ]
