"""POST /v1/chat/completions"""

import time

from fastapi import APIRouter
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from quire_api.openai import ChatCompletionRequest, InvalidRequest, sampling_params
from quire_api.openai_responses import AssistantMessage, ChatChoice, ChatCompletion, ChatLogprobs
from quire_runtime.engine.messages import TokenLogprobs
from quire_runtime.server.body import read_json
from quire_runtime.server.choices import Choice
from quire_runtime.server.events import AnswerEvents
from quire_runtime.server.generation import Generation
from quire_runtime.server.ids import request_id_of
from quire_runtime.server.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from quire_runtime.server.prompts import chat_prompt, checked
from quire_runtime.server.replay import Replay, read_replay
from quire_runtime.server.request import begin, warnings
from quire_runtime.server.respond import respond
from quire_runtime.server.service import Service, service_of
from quire_runtime.server.stream import EventWriter
from quire_runtime.server.usage import usage_of

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    service = service_of(request)
    body = await read_json(request, service.config.max_body_bytes)
    replay = read_replay(request, body)
    ask = ChatCompletionRequest.parse(body)
    model = service.model_name(ask.model)
    tokenizer, window = service.tokenizer, service.info.max_model_len
    if ask.chat_template is not None and not service.config.trust_request_chat_template:
        raise InvalidRequest(
            "chat_template is not taken from requests here. The server allows it with --trust-request-chat-template.",
            "chat_template",
        )
    params = sampling_params(ask, service.default_sampling)
    useful = window if ask.truncate_prompt_tokens is None else None
    ids = await chat_prompt(tokenizer, body, service.config.default_chat_template_kwargs, useful)
    prompt = checked(ids, tokenizer, ask.truncate_prompt_tokens, window)
    answer = Answer(service, ask, f"chatcmpl-{request_id_of(request.scope)}", model, replay)
    generation = begin(service, request, ask, [prompt], params, replay)
    return await respond(request, generation, answer, warnings(ask.unknown_fields()), stream=bool(ask.stream))


class Answer:
    """How the answer to one request is written."""

    def __init__(
        self, service: Service, ask: ChatCompletionRequest, answer_id: str, model: str, replay: Replay
    ) -> None:
        self._ask = ask
        self._names = TokenNames(service.tokenizer, bool(ask.return_tokens_as_token_ids))
        self._id = answer_id
        self._created = int(time.time()) if replay.terms is None else replay.terms.created
        self._model = model

    def whole(self, generation: Generation) -> ChatCompletion:
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[self._choice(choice) for choice in generation.choices],
            usage=usage_of(generation),
            prompt_logprobs=(
                UNSET
                if self._ask.prompt_logprobs is None
                else prompt_logprobs(generation.prompt_logprobs[0] or [], self._names)
            ),
            prompt_token_ids=generation.prompts[0] if self._ask.return_token_ids else UNSET,
        )

    def events(self, generation: Generation) -> AnswerEvents:
        writer = EventWriter(
            {"id": self._id, "object": "chat.completion.chunk", "created": self._created, "model": self._model},
            len(generation.choices),
            first_open=b'"delta":{"role":"assistant","content":',
            text_open=b'"delta":{"content":',
            text_close=b"}",
            has_usage=self._ask.include_usage,
            begun=generation.begun,
        )
        logprobs_of = (lambda _, positions: self._logprobs(positions)) if self._ask.logprobs else None
        return AnswerEvents(generation, self._ask, writer, logprobs_of=logprobs_of)

    def _choice(self, choice: Choice) -> ChatChoice:
        text, ids, logprobs = choice.take()
        return ChatChoice(
            index=choice.index,
            message=AssistantMessage(text),
            logprobs=self._logprobs(logprobs),
            finish_reason=choice.finish_reason or "abort",
            stop_reason=choice.stop_reason,
            token_ids=ids if self._ask.return_token_ids else UNSET,
        )

    def _logprobs(self, positions: list[TokenLogprobs]) -> ChatLogprobs | None:
        return chat_logprobs(positions, self._names) if self._ask.logprobs else None
