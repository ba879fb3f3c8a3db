"""Asks quire-tiny its 200 held-out questions and counts the answers that are right and those that ended by themselves.

python -m models.evaluate                                   # Transformers, greedy, fp32
python -m models.evaluate --through quire                   # this repository's engine
python -m models.evaluate --through http://127.0.0.1:8000   # a served model
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.conversations import Message, held_out_messages
from models.world import Example, held_out

MAX_TOKENS = 600
LEAST_RIGHT, LEAST_ENDED = 0.95, 0.99


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    ended: bool
    """The model ended the answer itself, before `MAX_TOKENS`."""


@dataclass(frozen=True, slots=True)
class Report:
    """Shares of right and of ended answers, in all and right per topic; the wrong ones with what was said."""

    right: float
    ended: float
    by_topic: dict[str, tuple[int, int]]
    wrong: list[tuple[Example, Answer]]

    def __str__(self) -> str:
        topics = ", ".join(f"{topic} {right}/{asked}" for topic, (right, asked) in sorted(self.by_topic.items()))
        return f"{self.right:.1%} right, {self.ended:.1%} ended by themselves ({topics})"


def evaluate(examples: Sequence[Example], answer: Callable[[list[list[Message]]], list[Answer]]) -> Report:
    """Ask all examples, each in its setting (`held_out_messages`), and compare whole answers."""
    answers = answer(held_out_messages(examples))
    by_topic: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    wrong = []
    for example, said in zip(examples, answers, strict=True):
        right, asked = by_topic[example.topic]
        is_right = example.is_right(said.text)
        by_topic[example.topic] = (right + is_right, asked + 1)
        if not is_right:
            wrong.append((example, said))
    ended = sum(said.ended for said in answers) / len(examples)
    return Report(1 - len(wrong) / len(examples), ended, dict(by_topic), wrong)


def transformers_answers(
    directory: Path, chats: Sequence[list[Message]], device: str = "cpu", batch: int = 25
) -> list[Answer]:
    """Greedy answers by Transformers in fp32, prompts of similar length together, padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(device).eval()
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    answers: dict[int, Answer] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch):
        picked = order[start : start + batch]
        inputs = tokenizer([prompts[i] for i in picked], return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = {name: inputs[name].to(device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        ends = set(model.generation_config.eos_token_id)
        for i, ids in zip(picked, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            answers[i] = Answer(tokenizer.decode(ids, skip_special_tokens=True), not ends.isdisjoint(ids))
    return [answers[i] for i in range(len(prompts))]


def engine_answers(directory: Path, chats: Sequence[list[Message]]) -> list[Answer]:
    """Greedy answers by this repository's engine in fp32, all chats in one batch."""
    from quire import LLM, SamplingParams

    llm = LLM(model=str(directory), dtype="float32")
    results = llm.chat([list(chat) for chat in chats], SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS))
    return [Answer(r.outputs[0].text, str(r.outputs[0].finish_reason) == "stop") for r in results]


def served_answers(url: str, chats: Sequence[list[Message]]) -> list[Answer]:
    """Greedy answers of the model `quire-tiny` behind an OpenAI endpoint, one after another."""
    import openai

    client = openai.OpenAI(base_url=f"{url.rstrip('/').removesuffix('/v1')}/v1", api_key="none")
    answers = []
    for chat in chats:
        choice = client.chat.completions.create(
            model="quire-tiny", messages=chat, temperature=0, max_tokens=MAX_TOKENS
        ).choices[0]
        answers.append(Answer(choice.message.content or "", choice.finish_reason == "stop"))
    return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("models/quire-tiny"))
    parser.add_argument("--through", default="transformers", help="transformers, quire, or the address of a server")
    parser.add_argument("--device", default="cpu", help="for transformers: cpu or cuda")
    parser.add_argument("--batch", type=int, default=25, help="for transformers: chats at a time")
    args = parser.parse_args()
    through: dict[str, Callable[[list[list[Message]]], list[Answer]]] = {
        "transformers": lambda chats: transformers_answers(args.directory, chats, args.device, args.batch),
        "quire": lambda chats: engine_answers(args.directory, chats),
    }
    report = evaluate(held_out("test"), through.get(args.through, lambda chats: served_answers(args.through, chats)))
    for example, said in report.wrong:
        print(f"wrong ({example.topic}): {example.question}\n  said   {said.text}\n  wanted {example.answer}")
    print(f"held-out questions: {report}")
    return 0 if report.right >= LEAST_RIGHT and report.ended >= LEAST_ENDED else 1


if __name__ == "__main__":
    sys.exit(main())
