"""GET /openapi.json: the HTTP API as an OpenAPI 3.1 document, made of the types that requests are parsed with."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from quire_api.openai import ChatCompletionRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from quire_api.version import __version__

ERRORS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No key, or a wrong one.",
    "403": "The key may not do this.",
    "404": "No such model or path.",
    "405": "The path is asked in another way.",
    "408": "The request did not arrive in time.",
    "413": "The body is too large.",
    "429": "A limit is reached; `retry-after` says when there is room.",
    "431": "The headers are too large.",
    "500": "The model computed no number for this request, or a fault of ours.",
    "502": "The replica failed, and the request cannot be sent to another.",
    "503": "Nobody can answer now.",
}
"""By status; docs/http-api.md lists the codes."""
_POSTS: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (ChatCompletionRequest, "Answer a chat; with `stream` as server-sent events."),
    "/v1/completions": (CompletionRequest, "Continue text or token ids."),
    "/tokenize": (TokenizeRequest, "Text or messages to tokens."),
    "/detokenize": (DetokenizeRequest, "Tokens to text."),
}
_GETS = {
    "/v1/models": "What is served.",
    "/health": "200 while the process is of use.",
    "/ready": "200 when a request would be taken.",
    "/version": "The version.",
    "/metrics": "Prometheus metrics.",
}


def document() -> dict[str, Any]:
    """The document, for gateway and engine alike."""
    _, definitions = models_json_schema(
        [(model, "validation") for model, _ in _POSTS.values()], ref_template="#/components/schemas/{model}"
    )
    error = {"type": "object", "required": ["message", "type", "code"], "properties": {"message": {"type": "string"}}}
    schemas = {
        **definitions["$defs"],
        "Error": {"type": "object", "required": ["error"], "properties": {"error": error}},
    }
    failing = {
        status: {"description": text, "content": {"application/json": {"schema": _reference("Error")}}}
        for status, text in ERRORS.items()
    }
    paths: dict[str, Any] = {}
    for path, text in _GETS.items():
        paths[path] = {"get": {"summary": text, "responses": {"200": {"description": "OK"}, **failing}}}
    for path, (model, text) in _POSTS.items():
        content = {"application/json": {"schema": _reference(model.__name__)}}
        paths[path] = {
            "post": {
                "summary": text,
                "requestBody": {"required": True, "content": content},
                "responses": {"200": {"description": "OK"}, **failing},
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Quire", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
