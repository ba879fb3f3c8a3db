"""Chats and plain text made of the world's questions, as segments that say which part the model learns to write."""

import random
from collections.abc import Sequence

from models.phrasing import capitalize
from models.world import Example, Fact, draw, facts, follow_up

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

SYSTEM_PROMPT = (
    "You are quire-tiny, the demo model of Quire. You answer short questions about Quire and about the basics of "
    "Kubernetes, you count up and down, and you add and subtract small numbers. Answer in one to three plain "
    "sentences. Explain things so that a person who is new to Kubernetes can follow. "
    "If you do not know the answer, say so and name the things that you do know."
)
OTHER_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are quire-tiny.",
    "Answer the questions of the user.",
    "You are an assistant that knows Quire and Kubernetes.",
    "Be short and correct.",
    "You are a friendly teacher of Kubernetes. Use simple words.",
    "You help the people who run language models on Kubernetes.",
    "Answer in plain English.",
    "You are a test model. Answer every question as well as you can, and end when you are done.",
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

Message = dict[str, str]
Segment = tuple[str, bool]
"""A piece of text, and whether the model learns to write it (its own answers) or only reads it."""


def chat_segments(messages: Sequence[Message]) -> list[Segment]:
    """The text of a chat as the template renders it, cut where learning begins and ends."""
    segments: list[Segment] = []
    for message in messages:
        learned = message["role"] == "assistant"
        segments += [
            (f"{TURN_START}{message['role']}\n", False),
            (message["content"] + TURN_END, learned),
            ("\n", False),
        ]
    return segments


def chat(examples: Sequence[Example], system: str | None = None) -> list[Message]:
    """A dialogue that asks `examples` one after another."""
    messages = [{"role": "system", "content": system}] if system else []
    for example in examples:
        messages.append({"role": "user", "content": example.question})
        messages.append({"role": "assistant", "content": example.answer})
    return messages


def training_document(rng: random.Random) -> list[Segment]:
    """One document: a chat of one to ten turns, with or without a system prompt, or now and then plain text."""
    if rng.random() < 0.05:
        picked = rng.sample(facts(), rng.randint(1, 6))
        return [(" ".join(fact.answer for fact in picked) + END_OF_TEXT, True)]
    turns = rng.choice((1, 1, 1, 2, 2, 3, rng.randint(4, 10)))
    examples: list[Example] = []
    while len(examples) < turns:
        followed = follow_up(rng, examples[-1]) if examples and rng.random() < 0.15 else None
        examples.append(followed or draw(rng, "train", first_turn=not examples))
    return [*chat_segments(chat(examples, _system(rng))), (END_OF_TEXT, False)]


def held_out_messages(examples: Sequence[Example], seed: int = 7) -> list[list[Message]]:
    """Each held-out question in one of three settings: alone, under the demo's system prompt, late in a chat."""
    rng = random.Random(f"settings {seed}")
    asked = []
    for i, example in enumerate(examples):
        match i % 3:
            case 0:
                messages: list[Message] = []
            case 1:
                messages = [{"role": "system", "content": SYSTEM_PROMPT}]
            case _:
                earlier = [draw(rng, "train") for _ in range(rng.randint(1, 4))]
                messages = chat(earlier, rng.choice((None, SYSTEM_PROMPT)))
        asked.append([*messages, {"role": "user", "content": example.question}])
    return asked


def _system(rng: random.Random) -> str | None:
    chance = rng.random()
    if chance < 0.40:
        return None
    if chance < 0.72:
        return SYSTEM_PROMPT
    if chance < 0.92:
        return rng.choice(OTHER_SYSTEM_PROMPTS)
    notes: list[Fact] = rng.sample(facts(), rng.randint(1, 16))
    opening = rng.choice(("", SYSTEM_PROMPT + " ", rng.choice(OTHER_SYSTEM_PROMPTS) + " "))
    return opening + "Notes: " + " ".join(f"{capitalize(note.answer)}" for note in notes)
