"""Chat messages to the prompt a model was trained on: its own template, rendered as Transformers does."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quire_text.errors import ChatTemplateError
from quire_text.tokenizer import Tokenizer

Message = Mapping[str, Any]

_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
_CONTINUE_HERE = "CONTINUE_FINAL_MESSAGE_TAG "


def render(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The prompt text of a conversation; encode it with add_special_tokens=False.

    chat_template: a template, or the name of one of the tokenizer's; None takes the tokenizer's default.
    template_kwargs: further variables of the template.
    continue_final_message: leave the last message open, for the model to go on with it.

    Raises:
        ChatTemplateError: there is no template, it does not compile, or it refuses these messages.
    """
    if not messages:
        raise ChatTemplateError("messages is empty. Send at least one message.")
    if continue_final_message and add_generation_prompt:
        raise ChatTemplateError(
            "continue_final_message and add_generation_prompt exclude each other. Set add_generation_prompt to false."
        )
    if reserved := _RESERVED.intersection(template_kwargs or {}):
        raise ChatTemplateError(f"chat_template_kwargs must not set {sorted(reserved)[0]}.")
    source = _choose(tokenizer, chat_template, bool(tools))
    compiled = _compile(source)
    conversation = _shape(messages, compiled.wants_parts)
    if continue_final_message:
        _mark_end(conversation)
    variables = {"documents": None, **tokenizer.special_tokens, **(template_kwargs or {})}
    variables |= {"tools": tools or None, "add_generation_prompt": add_generation_prompt}
    try:
        text = _render(compiled.template, variables, conversation)
    except ChatTemplateError:
        # Templates that only know text fail on the usual history after a tool call, whose content is null.
        if not any(_calls_without_words(turn) for turn in conversation):
            raise
        worded = [{**turn, "content": ""} if _calls_without_words(turn) else turn for turn in conversation]
        text = _render(compiled.template, variables, worded)
    return _cut_at_mark(text) if continue_final_message else text


def encode_chat(
    tokenizer: Tokenizer,
    body: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
    *,
    window: int | None = None,
) -> list[int]:
    """Prompt ids of a chat completion request, given as its parsed JSON body.

    Engine and gateway both count on it, so that they see the same tokens. `defaults` are template variables that the
    body's chat_template_kwargs override. Tools are shown to the model unless tool_choice is "none".

    Raises:
        ChatTemplateError
        BadText, TextTooLong: as Tokenizer.encode.
    """
    variables = {**(defaults or {}), **(body.get("chat_template_kwargs") or {})}
    if body.get("documents") is not None:
        variables["documents"] = body["documents"]
    continues = bool(body.get("continue_final_message"))
    text = render(
        tokenizer,
        body["messages"],
        add_generation_prompt=_or(body.get("add_generation_prompt"), not continues),
        continue_final_message=continues,
        chat_template=body.get("chat_template"),
        template_kwargs=variables,
        tools=None if body.get("tool_choice", "auto") == "none" else body.get("tools"),
    )
    return tokenizer.encode(text, add_special_tokens=bool(body.get("add_special_tokens")), window=window)


def check_template(source: str) -> None:
    """
    Raises:
        ChatTemplateError: it does not compile.
    """
    _compile(source)


def _render(template: jinja2.Template, variables: Mapping[str, Any], conversation: list[dict[str, Any]]) -> str:
    try:
        return template.render({**variables, "messages": conversation})
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"The chat template refused the messages: {error.message}") from error
    except Exception as error:
        raise ChatTemplateError(f"The chat template failed on the messages: {error}") from error


def _calls_without_words(turn: Mapping[str, Any]) -> bool:
    return bool(turn.get("tool_calls")) and turn.get("content") is None


class _Compiled:
    """wants_parts: the template walks over the parts of a message's content; others want one string."""

    def __init__(self, template: jinja2.Template, wants_parts: bool) -> None:
        self.template = template
        self.wants_parts = wants_parts


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's words for training, renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


@lru_cache(maxsize=64)
def _compile(source: str) -> _Compiled:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    try:
        return _Compiled(environment.from_string(source), _walks_content(environment.parse(source)))
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"The chat template does not compile: {error.message} (line {error.lineno}). Correct the template."
        ) from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _choose(tokenizer: Tokenizer, asked: str | None, has_tools: bool) -> str:
    named = tokenizer.named_templates
    if asked is not None:
        return named.get(asked, asked)
    if has_tools and "tool_use" in named:
        return named["tool_use"]
    if "default" in named:
        return named["default"]
    if named:
        raise ChatTemplateError(f"This model has no default chat template; name one of {sorted(named)}.")
    raise ChatTemplateError(
        "This model has no chat template. Use /v1/completions, or start the server with --chat-template FILE."
    )


def _walks_content(tree: nodes.Template) -> bool:
    """Whether a loop of the template runs over a message's `content`, directly or through a variable."""
    aliases = {
        assign.target.name
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node)
    }
    return any(
        _is_content(loop.iter) or (isinstance(loop.iter, nodes.Name) and loop.iter.name in aliases)
        for loop in tree.find_all(nodes.For)
    )


def _is_content(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _is_content(node.node)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"


def _shape(messages: Sequence[Message], wants_parts: bool) -> list[dict[str, Any]]:
    """Messages as templates expect them: content as one string unless the template walks over parts, and arguments
    of earlier tool calls as objects."""
    shaped = []
    for message in messages:
        turn = dict(message)
        content = turn.get("content")
        if isinstance(content, list):
            parts = [{"type": "text", "text": part} if isinstance(part, str) else dict(part) for part in content]
            turn["content"] = parts if wants_parts else "\n".join(part.get("text", "") for part in parts)
        if calls := turn.get("tool_calls"):
            if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
                raise ChatTemplateError("tool_calls of a message must be a list of objects.")
            turn["tool_calls"] = [_with_parsed_arguments(call) for call in calls]
        shaped.append(turn)
    return shaped


def _with_parsed_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return dict(call)
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError) as error:
        raise ChatTemplateError(f"The arguments of a tool call in messages are not JSON: {error}.") from error
    return {**call, "function": {**function, "arguments": arguments}}


def _mark_end(conversation: list[dict[str, Any]]) -> None:
    last = conversation[-1]
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + _CONTINUE_HERE
        return
    for part in reversed(content if isinstance(content, list) else []):
        if "text" in part:
            part["text"] += _CONTINUE_HERE
            return
    raise ChatTemplateError("continue_final_message needs text in the last message, to go on with it.")


def _cut_at_mark(text: str) -> str:
    mark = text.rfind(_CONTINUE_HERE.strip())
    if mark < 0:
        raise ChatTemplateError("This model's chat template leaves out the last message; it cannot be continued.")
    kept_its_space = text[mark : mark + len(_CONTINUE_HERE)] == _CONTINUE_HERE
    return text[:mark] if kept_its_space else text[:mark].rstrip()


def _or(value: bool | None, default: bool) -> bool:
    return default if value is None else value
