"""POST /tokenize and /detokenize: the model's tokenizer as a service."""

import asyncio

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from quire_api.openai import DetokenizeRequest, InvalidRequest, TokenizeRequest
from quire_api.openai_responses import DetokenizeResponse, TokenizeResponse
from quire_runtime.server.body import read_json
from quire_runtime.server.prompts import chat_prompt, require_known, text_prompt
from quire_runtime.server.service import service_of

router = APIRouter()


@router.post("/tokenize")
async def tokenize(request: Request) -> Response:
    service = service_of(request)
    body = await read_json(request, service.config.max_body_bytes)
    ask = TokenizeRequest.parse(body)
    service.model_name(ask.model)
    tokenizer, config = service.tokenizer, service.config
    if ask.chat_template is not None and not config.trust_request_chat_template:
        raise InvalidRequest("chat_template is not taken from requests here.", "chat_template")
    if ask.prompt is None:
        ids = await chat_prompt(tokenizer, body, config.default_chat_template_kwargs, None)
    else:
        ids = await text_prompt(tokenizer, ask.prompt, ask.add_special_tokens is not False, None)
    texts = await asyncio.to_thread(list, map(tokenizer.token_text, ids)) if ask.return_token_strs else None
    return _json(TokenizeResponse(len(ids), service.info.max_model_len, ids, texts))


@router.post("/detokenize")
async def detokenize(request: Request) -> Response:
    service = service_of(request)
    ask = DetokenizeRequest.parse(await read_json(request, service.config.max_body_bytes))
    service.model_name(ask.model)
    require_known(ask.tokens, service.tokenizer, "tokens")
    text = await asyncio.to_thread(service.tokenizer.decode, ask.tokens, skip_special_tokens=False)
    return _json(DetokenizeResponse(text))


def _json(answer: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(answer), media_type="application/json")
