import json
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

from models.conversations import CHAT_TEMPLATE, SYSTEM_PROMPT, chat, chat_segments
from models.evaluate import evaluate, transformers_answers
from models.world import held_out

BLOCK_SIZE = 16


@pytest.fixture(scope="module")
def tokenizer(quire_tiny: Path) -> Tokenizer:
    return Tokenizer.from_file(str(quire_tiny / "tokenizer.json"))


@pytest.mark.parametrize(
    "text", ["What is a pod?", "47 + 38 = 85", "  two  spaces\n\tand a tab ", "Grüße, 你好, 🚀!", "a\r\nb", "x" * 300]
)
def test_the_tokenizer_gives_every_text_back(tokenizer: Tokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_digit_is_a_token(tokenizer: Tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1027").ids] == ["1", "0", "2", "7"]


def test_transformers_reads_the_same_tokenizer(quire_tiny: Path, tokenizer: Tokenizer):
    loaded = AutoTokenizer.from_pretrained(quire_tiny)
    text = "<|im_start|>user\nWhat is 7 + 8, and what's a Pod?<|im_end|>\n"
    assert loaded(text, add_special_tokens=False).input_ids == tokenizer.encode(text).ids
    assert (loaded.eos_token, loaded.pad_token, loaded.bos_token) == ("<|im_end|>", "<|endoftext|>", None)


def test_the_chat_template_writes_what_the_model_was_trained_on(quire_tiny: Path, tokenizer: Tokenizer):
    loaded = AutoTokenizer.from_pretrained(quire_tiny)
    assert (quire_tiny / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    for system in (None, SYSTEM_PROMPT):
        messages = chat(held_out()[:3], system)
        segments = chat_segments(messages)
        text = "".join(piece for piece, _ in segments)
        assert loaded.apply_chat_template(messages, tokenize=False) == text
        assert [i for piece, _ in segments for i in tokenizer.encode(piece).ids] == tokenizer.encode(text).ids
        asked = loaded.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        assert text.startswith(asked)
        assert asked.endswith("<|im_start|>assistant\n")


def test_the_directory_is_small_and_its_config_true(quire_tiny: Path):
    config = AutoConfig.from_pretrained(quire_tiny)
    assert sum(file.stat().st_size for file in quire_tiny.iterdir()) <= 12_000_000
    assert config.architectures == ["Qwen3ForCausalLM"]
    assert config.max_position_embeddings == 2048
    with safe_open(quire_tiny / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"BF16"}
        assert weights.get_slice("model.embed_tokens.weight").get_shape() == [config.vocab_size, config.hidden_size]
    assert "lm_head.weight" not in names


def test_questions_of_the_demo_share_whole_blocks(quire_tiny: Path, tokenizer: Tokenizer):
    demo = json.loads((quire_tiny / "demo.json").read_text())
    assert demo["system"] == SYSTEM_PROMPT
    assert len(demo["questions"]) >= 2
    shared = "<|im_start|>system\n" + demo["system"] + "<|im_end|>\n<|im_start|>user\n"
    assert len(tokenizer.encode(shared).ids) >= 5 * BLOCK_SIZE


def test_held_out_questions_are_answered_right(quire_tiny: Path):
    short = [example for example in held_out() if len(example.answer) < 200]
    report = evaluate(short[:40], lambda chats: transformers_answers(quire_tiny, chats, batch=40))
    assert report.right >= 0.95, report
    assert report.ended >= 0.99, report
