import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from quire_text.bundle import TokenizerBundle
from quire_text.chat import encode_chat, render
from quire_text.errors import ChatTemplateError
from quire_text.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = """{% if messages[0]['role'] == 'system' %}
{%- set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}
{%- set loop_messages = messages[1:] %}{% else %}{% set system = '' %}{% set loop_messages = messages %}{% endif %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'].strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}"""
LLAMA3 = """{{- bos_token }}
{%- if date_string is not defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{{- "<|im_start|>system\n\nCutting Knowledge Date: December 2023\nToday Date: " + date_string }}
{%- if tools is not none %}
    {{- "\nYou have these functions:\n" }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\n\n" }}{% endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- "}" }}
    {%- else %}
        {{- '<|im_start|>' + message['role'] + '\n\n'+ message['content'] | trim + '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{%- endif %}"""
QWEN3 = """{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and ns.last == messages|length - 1 %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}
        {{- '<|im_start|>assistant\n' }}{% generation %}{{- content }}{{- '<|im_end|>' }}{% endgeneration %}{{- '\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
PARTS = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message['content'] is string %}{{ message['content'] }}
    {%- else %}{% for part in message['content'] %}{% if part.type == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- endfor %}"""
CONTROLS = """{% for message in messages %}{% if loop.index > 2 %}{% break %}{% endif %}
{% if message.role == 'system' %}{% continue %}{% endif %}{{ message.content }}|{{ message | tojson }}
{% endfor %}"""
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "qwen3": QWEN3, "parts": PARTS, "controls": CONTROLS}

USER = {"role": "user", "content": '  What is <b>5 & 6</b>, "ä"? 你好 '}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nEleven. "}
SYSTEM = {"role": "system", "content": "Be brief."}
CHATS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "dialogue": [USER, ANSWER, USER],
    "ends with the assistant": [SYSTEM, USER, ANSWER],
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"city": {"type": "string"}}}}


@pytest.fixture(scope="module")
def oracle(byte_level_directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(byte_level_directory)


@pytest.fixture(scope="module")
def tokenizer(byte_level_directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(byte_level_directory)


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    "options", [{}, {"add_generation_prompt": True}, {"enable_thinking": False, "tools": [WEATHER]}]
)
def test_renders_as_transformers(oracle, tokenizer, chat: str, template: str, options: dict[str, Any]):
    variables = {name: value for name, value in options.items() if name == "enable_thinking"}
    ours = render(
        tokenizer,
        CHATS[chat],
        add_generation_prompt=options.get("add_generation_prompt", False),
        chat_template=TEMPLATES[template],
        template_kwargs=variables,
        tools=options.get("tools"),
    )
    assert ours == oracle.apply_chat_template(CHATS[chat], chat_template=TEMPLATES[template], tokenize=False, **options)


@pytest.mark.parametrize("template", ["chatml", "llama2", "llama3", "parts"])
def test_continues_the_final_message_as_transformers(oracle, tokenizer, template: str):
    ours = render(
        tokenizer,
        CHATS["ends with the assistant"],
        add_generation_prompt=False,
        continue_final_message=True,
        chat_template=TEMPLATES[template],
    )
    assert ours == oracle.apply_chat_template(
        CHATS["ends with the assistant"],
        chat_template=TEMPLATES[template],
        tokenize=False,
        continue_final_message=True,
    )


def test_text_parts_reach_both_kinds_of_template(oracle, tokenizer):
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    walked = render(tokenizer, parts, chat_template=PARTS)
    assert walked == oracle.apply_chat_template(parts, chat_template=PARTS, tokenize=False)
    joined = render(tokenizer, parts, chat_template=CHATML, add_generation_prompt=False)
    assert joined == "<|im_start|>user\na\nb<|im_end|>\n"


def test_arguments_of_earlier_calls_become_objects(oracle, tokenizer):
    def call(arguments: Any) -> list[dict[str, Any]]:
        return [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]

    ours = render(tokenizer, call('{"city": "Köln"}'), chat_template=LLAMA3, add_generation_prompt=False)
    assert ours == oracle.apply_chat_template(call({"city": "Köln"}), chat_template=LLAMA3, tokenize=False)
    with pytest.raises(ChatTemplateError, match="not JSON"):
        render(tokenizer, call("{"), chat_template=LLAMA3)


@pytest.mark.parametrize("content", [{}, {"content": None}], ids=["left out", "null"])
def test_a_call_without_words_is_rendered_by_a_template_that_only_knows_text(tokenizer, content: dict[str, None]):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}], **content}
    text = render(tokenizer, [USER, call], chat_template=CHATML, add_generation_prompt=False)
    assert text.endswith("<|im_start|>assistant\n<|im_end|>\n")


def test_a_call_without_words_reaches_a_template_that_asks_for_it_as_it_is(oracle, tokenizer):
    asks = "{% for m in messages %}{{ m.role }} {{ 'silent' if m.content is none else m.content }}\n{% endfor %}"
    turns = [USER, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]
    assert render(tokenizer, turns, chat_template=asks) == oracle.apply_chat_template(
        turns, chat_template=asks, tokenize=False
    )


def test_a_request_becomes_the_ids_of_its_prompt(tokenizer):
    chatting = Tokenizer.from_bundle(tokenizer.bundle.with_chat_template(QWEN3))
    body = {"messages": [USER], "chat_template_kwargs": {"enable_thinking": False}, "tools": [WEATHER]}
    expected = render(chatting, [USER], template_kwargs={"enable_thinking": False}, tools=[WEATHER])
    assert encode_chat(chatting, body) == chatting.encode(expected, add_special_tokens=False)
    assert encode_chat(chatting, {"messages": [USER]}, defaults={"enable_thinking": False}) == encode_chat(
        chatting, body
    )
    prefilled = encode_chat(chatting, {"messages": [USER, ANSWER], "continue_final_message": True})
    assert chatting.decode(prefilled, skip_special_tokens=False).endswith("Eleven. ")


def test_named_templates(byte_level_directory):
    bundle = TokenizerBundle.from_directory(byte_level_directory)
    config = json.loads(bundle.files["tokenizer_config.json"])
    config["chat_template"] = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    named = Tokenizer.from_bundle(
        TokenizerBundle({**bundle.files, "tokenizer_config.json": json.dumps(config).encode()})
    )
    assert render(named, [USER]) == "D"
    assert render(named, [USER], tools=[WEATHER]) == "T"
    assert render(named, [USER], chat_template="tool_use") == "T"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"chat_template": LLAMA2, "messages": [ANSWER]}, "roles must alternate"),
        ({"chat_template": "{% for %}"}, "does not compile"),
        ({"chat_template": "{{ messages[0].nothing.at.all }}"}, "refused the messages"),
        ({"chat_template": "{{ messages.append(1) }}"}, "refused the messages"),
        ({"chat_template": "{{ ''.__class__.__mro__ }}"}, "refused the messages"),
        ({"chat_template": "{{ 1 + 'a' }}"}, "failed on the messages"),
        ({"chat_template": "{{ range(10**9) | list }}"}, "failed on the messages"),
        ({}, "has no chat template"),
        ({"chat_template": CHATML, "messages": []}, "messages is empty"),
        ({"chat_template": CHATML, "continue_final_message": True}, "exclude each other"),
        ({"chat_template": CHATML, "template_kwargs": {"messages": []}}, "must not set messages"),
        ({"chat_template": CHATML, "messages": [{**ANSWER, "tool_calls": 5}]}, "list of objects"),
        ({"chat_template": CHATML, "messages": [{**ANSWER, "tool_calls": [5]}]}, "list of objects"),
        (
            {
                "chat_template": CHATML,
                "messages": [{**ANSWER, "tool_calls": [{"function": {"arguments": "[" * 10**5}}]}],
            },
            "not JSON",
        ),
        (
            {
                "chat_template": "{{ messages[0].role }}",
                "continue_final_message": True,
                "add_generation_prompt": False,
            },
            "leaves out the last message",
        ),
    ],
)
def test_what_cannot_be_rendered_says_why(tokenizer, arguments: dict[str, Any], says: str):
    with pytest.raises(ChatTemplateError, match=says):
        render(tokenizer, **{"messages": [USER], **arguments})
