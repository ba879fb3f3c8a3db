import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
from transformers import AutoTokenizer

from quire_text.bundle import TokenizerBundle
from quire_text.errors import BadText, MalformedTokenizer, TextTooLong
from quire_text.tokenizer import Tokenizer

TEXTS = [
    "",
    "hello world",
    " the then",
    "Zwölf  Boxkämpfer\n\tjagen",
    "你好 👩‍👩‍👧!",
    "<|im_start|>user\nhi<|im_end|>",
    "a </s> b",
]


def changed(directory: Path, target: Path, **config: object) -> Path:
    """A copy with other values in tokenizer_config.json; None removes one."""
    shutil.copytree(directory, target)
    path = target / "tokenizer_config.json"
    merged = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({name: value for name, value in merged.items() if value is not None}))
    return target


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_ids_and_text_equal_transformers(tokenizer_directory: Path, tokenizer: Tokenizer, add_special_tokens: bool):
    oracle = AutoTokenizer.from_pretrained(tokenizer_directory)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens)
        assert ids == oracle(text, add_special_tokens=add_special_tokens)["input_ids"]
        for skip in (True, False):
            expected = oracle.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert tokenizer.decode(ids, skip) == expected


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("processor", ["kept", None])
def test_the_post_processor_decides_on_the_beginning_token(byte_level_directory, tmp_path, flag, processor):
    directory = changed(byte_level_directory, tmp_path / "model", add_bos_token=flag)
    if processor is None:
        spec = json.loads((directory / "tokenizer.json").read_text())
        (directory / "tokenizer.json").write_text(json.dumps({**spec, "post_processor": None}))
    tokenizer = Tokenizer.from_directory(directory)
    ids = tokenizer.encode("hello")
    assert ids == AutoTokenizer.from_pretrained(directory)("hello")["input_ids"]
    assert (ids[0] == tokenizer.bos_token_id) == (processor == "kept")


def test_special_tokens_are_known(tokenizer: Tokenizer):
    assert tokenizer.decode([tokenizer.bos_token_id], skip_special_tokens=False) == "<s>"
    assert tokenizer.is_special(tokenizer.eos_token_id)
    assert not tokenizer.is_special(tokenizer.encode("t", add_special_tokens=False)[-1])
    assert tokenizer.vocab_size == max(tokenizer.backend.get_vocab().values()) + 1


def test_special_tokens_that_only_the_config_names_are_added(byte_level_directory, tmp_path):
    directory = changed(byte_level_directory, tmp_path / "model", pad_token="<pad>", eos_token={"content": "<end>"})
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.eos_token_id is not None
    assert tokenizer.encode("hi<end>", add_special_tokens=False)[-1] == tokenizer.eos_token_id
    assert tokenizer.is_special(tokenizer.eos_token_id)


def test_truncation_stored_in_the_file_is_not_applied(byte_level_directory, tmp_path):
    directory = changed(byte_level_directory, tmp_path / "model")
    spec = json.loads((directory / "tokenizer.json").read_text())
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    assert len(Tokenizer.from_directory(directory).encode("one two three four five six seven eight")) > 8


def test_token_bytes_of_a_text_join_to_the_text(tokenizer: Tokenizer):
    for text in ["hello the world", "Zwölf 你好 👩‍👩‍👧"]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(map(tokenizer.token_bytes, ids)).decode().lstrip(" ") == text
    assert tokenizer.token_text(tokenizer.eos_token_id) == "</s>"
    assert tokenizer.token_text(10**6) == ""


def test_templates_come_from_their_files(byte_level_directory, tmp_path):
    directory = changed(byte_level_directory, tmp_path / "model", chat_template="old")
    assert Tokenizer.from_directory(directory).chat_template == "old"
    (directory / "chat_template.jinja").write_text("new")
    named = directory / "additional_chat_templates"
    named.mkdir()
    (named / "tool_use.jinja").write_text("tools")
    assert Tokenizer.from_directory(directory).named_templates == {"default": "new", "tool_use": "tools"}


def test_a_bundle_is_the_same_everywhere(tokenizer_directory: Path, tmp_path: Path):
    bundle = TokenizerBundle.from_directory(tokenizer_directory)
    shutil.copytree(tokenizer_directory, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"weights are no part of it")
    again = TokenizerBundle.unpack(TokenizerBundle.from_directory(tmp_path / "copy").pack())
    assert again.digest == bundle.digest
    assert again.with_chat_template("x").digest != bundle.digest
    there = Tokenizer.from_bundle(again)
    assert there.encode("the then") == Tokenizer.from_directory(tokenizer_directory).encode("the then")


def test_the_digest_is_fixed():
    bundle = TokenizerBundle({"tokenizer.json": b"{}", "tokenizer_config.json": b'{"a": 1}'})
    assert bundle.digest == "5ce28fc7f8efc186cdea2e47cf880120c9eb42383ee7563fd7d0e4414c0767f9"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", b"{", "cannot be used"),
        ("tokenizer.json", b"\xff\xfe", "cannot be used"),
        ("tokenizer.json", b'{"model": {"type": "Nothing"}}', "cannot be used"),
        ("tokenizer_config.json", b"[", "not JSON"),
        ("tokenizer_config.json", b"[]", "JSON object"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": 1}}', "cannot be used"),
    ],
)
def test_malformed_files_are_named(byte_level_directory, tmp_path, name, content, says):
    directory = changed(byte_level_directory, tmp_path / "model")
    (directory / name).write_bytes(content)
    with pytest.raises(MalformedTokenizer, match=says):
        Tokenizer.from_directory(directory)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(MalformedTokenizer, match=r"has no tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    with pytest.raises(MalformedTokenizer, match="not a directory"):
        Tokenizer.from_directory(tmp_path / "nowhere")
    with pytest.raises(MalformedTokenizer, match="not a packed tokenizer"):
        TokenizerBundle.unpack(b"\x00")


def test_others_run_while_a_long_text_is_read(byte_level_directory):
    tokenizer = Tokenizer.from_directory(byte_level_directory)
    turns = 0
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(tokenizer.encode, "hello the world " * 100_000)
        while not reading.done():
            turns += 1
            time.sleep(0.001)
    assert len(reading.result()) > 100_000
    assert turns > 5, "the reader held the interpreter"


def test_long_and_short_texts_become_the_same_tokens(tokenizer: Tokenizer):
    for text in TEXTS:
        long = text + " the" * 5000
        assert tokenizer.encode(long) == tokenizer.backend.encode(long).ids


def test_a_text_that_must_exceed_the_window_is_refused(tokenizer: Tokenizer):
    text = "the " * 10_000
    least = tokenizer.least_tokens(text)
    assert 0 < least <= len(tokenizer.encode(text))
    with pytest.raises(TextTooLong, match=f"at least {least} tokens"):
        tokenizer.encode(text, window=least - 1)
    assert tokenizer.encode("the", window=1_000) == tokenizer.encode("the")


def test_a_vocabulary_that_may_drop_characters_says_nothing_of_lengths():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    files = {"tokenizer.json": backend.to_str().encode()}
    assert Tokenizer.from_bundle(TokenizerBundle(files)).least_tokens("x" * 1000) == 0


@pytest.mark.parametrize("text", ["\ud800", "\ud800" + "a" * 5000])
def test_half_a_surrogate_pair_is_no_text(tokenizer: Tokenizer, text: str):
    with pytest.raises(BadText, match="surrogate"):
        tokenizer.encode(text)
