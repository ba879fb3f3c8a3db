import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire_runtime.model.fingerprint import model_revision


@pytest.fixture
def llama(tiny_model_dir: Any, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model_dir("llama"), tmp_path / "llama")


def test_equal_wherever_the_model_lies(tiny_model_dir: Any, llama: Path):
    assert model_revision(llama) == model_revision(tiny_model_dir("llama"))
    assert len(model_revision(llama)) == 32


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_differs_with_config_and_tokenizer(llama: Path, name: str):
    before = model_revision(llama)
    (llama / name).write_text((llama / name).read_text() + " ")
    assert model_revision(llama) != before


def test_differs_between_fine_tunes_of_one_shape(llama: Path):
    before = model_revision(llama)
    tensors = {name: tensor + 1e-3 for name, tensor in load_file(llama / "model.safetensors").items()}
    save_file(tensors, llama / "model.safetensors", metadata={"format": "pt"})
    assert model_revision(llama) != before


def test_covers_every_shard_and_pickles_too(tiny_model_dir: Any, llama: Path, tmp_path: Path):
    sharded = shutil.copytree(tiny_model_dir("llama", max_shard_size="60KB"), tmp_path / "sharded")
    before = model_revision(sharded)
    last = max(sharded.glob("model-*.safetensors"))
    save_file({name: tensor * 2 for name, tensor in load_file(last).items()}, last)
    assert model_revision(sharded) != before
    torch.save(load_file(llama / "model.safetensors"), llama / "pytorch_model.bin")
    (llama / "model.safetensors").unlink()
    assert model_revision(llama) != model_revision(tiny_model_dir("llama"))


def test_a_directory_without_weights_has_a_name_as_well(llama: Path):
    with_weights = model_revision(llama)
    (llama / "model.safetensors").unlink()
    assert len(model_revision(llama)) == 32
    assert model_revision(llama) != with_weights
