"""Small tokenizers of the two kinds in use, saved by Transformers, which is also the oracle."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from quire_text.tokenizer import Tokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The scheduler gives every running request its tokens first, then admits those that wait.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "one two three four five six seven eight nine ten",
]


def byte_level() -> Backend:
    """As Llama 3 and Qwen: every byte has a printable stand-in."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def byte_fallback() -> Backend:
    """As Llama 2 and Mistral: spaces are U+2581, unknown characters fall back to tokens of one byte."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    letters = sorted({char for text in CORPUS for char in text if char != " " and char.isascii()})
    words = ["▁t", "▁th", "▁the", "en", "on", "▁o", "▁on"]
    vocab = {piece: rank for rank, piece in enumerate([*pieces, *letters, *words])}
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("e", "n"), ("o", "n"), ("▁", "o"), ("▁o", "n")]
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(SPECIAL)
    return backend


@pytest.fixture(scope="session", params=["byte_level", "byte_fallback"])
def tokenizer_directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory)


@pytest.fixture(scope="session")
def byte_level_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("byte_level", tmp_path_factory)


@pytest.fixture(scope="session")
def byte_fallback_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_directory(save("byte_fallback", tmp_path_factory))


def save(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(kind)
    backend = {"byte_level": byte_level, "byte_fallback": byte_fallback}[kind]()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True
    )
    fast.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(tokenizer_directory)
