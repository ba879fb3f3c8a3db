import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quire_runtime.model.config import ModelConfig
from quire_runtime.model.errors import MalformedModel, PickleRefused, WeightsMismatch
from quire_runtime.model.fingerprint import model_revision
from quire_runtime.model.loader import load_weights
from quire_runtime.model.registry import Model, build_model, weights_nbytes


@pytest.fixture
def llama(tiny_model_dir: Any, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(tiny_model_dir("llama"), tmp_path / "llama")


@pytest.fixture
def sharded(tiny_model_dir: Any, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model_dir("llama", max_shard_size="60KB"), tmp_path / "sharded")


def built(directory: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Model:
    model = build_model(ModelConfig.from_directory(directory), dtype, "cpu")
    load_weights(model, directory, **options)
    return model


def rewrite(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (None) drop tensors of model.safetensors; `__` stands for a dot."""
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors")


def test_each_tensor_lands_in_its_slice_of_the_fused_one(llama: Path):
    model = built(llama)
    held = load_file(llama / "model.safetensors")
    prefix = "model.layers.1.self_attn"
    fused = torch.cat([held[f"{prefix}.{name}_proj.weight"] for name in "qkv"])
    assert torch.equal(model.layers[1].attention.qkv.weight, fused)
    assert torch.equal(model.embedding, held["model.embed_tokens.weight"])


def test_shards_load_as_one_file_does_and_progress_ends_at_the_total(llama: Path, sharded: Path):
    seen: list[tuple[int, int]] = []
    ours = built(sharded, progress=lambda done, total: seen.append((done, total)))
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    for mine, other in zip(ours.weights.tensors, built(llama).weights.tensors, strict=True):
        assert torch.equal(mine, other)
    assert seen[-1] == (ours.weights.nbytes, ours.weights.nbytes)
    assert seen == sorted(seen)


def test_values_are_converted_to_the_dtype_asked_for(llama: Path):
    held = load_file(llama / "model.safetensors")
    model = build_model(ModelConfig.from_directory(llama), torch.bfloat16, "cpu")
    report = load_weights(model, llama)
    assert torch.equal(model.lm_head, held["lm_head.weight"].bfloat16())
    assert report.read_bytes == 2 * report.nbytes == sum(tensor.nbytes for tensor in held.values())


def test_large_tensors_are_copied_in_pieces(llama: Path, monkeypatch: pytest.MonkeyPatch):
    whole = built(llama)
    monkeypatch.setattr("quire_runtime.model.loader.PIECE_BYTES", 1000)
    for mine, other in zip(built(llama).weights.tensors, whole.weights.tensors, strict=True):
        assert torch.equal(mine, other)


def test_a_tied_model_may_hold_its_head_or_not(tiny_model_dir: Any, tmp_path: Path):
    directory = shutil.copytree(tiny_model_dir("qwen3"), tmp_path / "qwen3")
    model = built(directory)
    assert model.lm_head is model.embedding
    rewrite(directory, lm_head__weight=torch.zeros(320, 64))
    assert torch.equal(built(directory).lm_head, model.embedding)


def test_dummy_weights_need_no_files_and_are_equal_for_equal_seeds(llama: Path):
    (llama / "model.safetensors").unlink()
    one, same, other = (built(llama, load_format="dummy", seed=seed) for seed in (7, 7, 8))
    assert torch.equal(one.lm_head, same.lm_head)
    assert not torch.equal(one.lm_head, other.lm_head)
    assert one.lm_head.std() > 0


def test_missing_unexpected_and_misshapen_tensors_are_named(llama: Path):
    rewrite(llama, model__norm__weight=None)
    with pytest.raises(WeightsMismatch, match=r"missing: model\.norm\.weight"):
        built(llama)
    rewrite(llama, model__norm__weight=torch.ones(64), model__layers__3__mlp__extra=torch.ones(2))
    with pytest.raises(WeightsMismatch, match=r"not described by config\.json: model\.layers\.3\.mlp\.extra"):
        built(llama)
    rewrite(llama, model__layers__3__mlp__extra=None, model__norm__weight=torch.ones(65))
    with pytest.raises(WeightsMismatch, match=r"model\.norm\.weight has shape \[65\] where config\.json means \[64\]"):
        built(llama)


def test_only_the_first_few_of_many_names_are_listed(llama: Path):
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(WeightsMismatch, match=r"and 15 more") as raised:
        built(llama)
    assert len(str(raised.value)) < 600


def test_quantised_tensors_are_refused(llama: Path):
    rewrite(llama, lm_head__weight=torch.zeros(320, 64, dtype=torch.int8))
    with pytest.raises(WeightsMismatch, match=r"quantised \(lm_head\.weight\)"):
        built(llama)


@pytest.mark.parametrize("size", [0, 5, 100, 50_000])
def test_a_truncated_file_is_refused(llama: Path, size: int):
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(MalformedModel, match="truncated or damaged"):
        built(llama)


def test_a_damaged_header_is_refused(llama: Path):
    path = llama / "model.safetensors"
    path.write_bytes(b"\xff" * 200)
    with pytest.raises(MalformedModel, match="truncated or damaged"):
        built(llama)


def test_a_missing_shard_is_named(sharded: Path):
    lost = sorted(sharded.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(MalformedModel, match=lost.name):
        built(sharded)


@pytest.mark.parametrize(
    ("index", "hint"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"weight_map": 3}', "is damaged"),
        ('{"weight_map": {"a": "../../secret.safetensors"}}', "not a file of the same directory"),
        ('{"weight_map": {"a": 7, "b": "c"}}', "is damaged|not a file"),
    ],
)
def test_a_damaged_index_is_refused(sharded: Path, index: str, hint: str):
    (sharded / "model.safetensors.index.json").write_text(index)
    with pytest.raises(MalformedModel, match=hint):
        built(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path):
    (sharded / "model.safetensors.index.json").unlink()
    first = min(sharded.glob("model-*.safetensors"))
    shutil.copy(first, sharded / "model-copy.safetensors")
    with pytest.raises(MalformedModel, match="is in both"):
        built(sharded)


def test_a_link_to_nothing_is_told_with_its_target(llama: Path):
    path = llama / "model.safetensors"
    path.unlink()
    path.symlink_to("../../blobs/4f2a")
    with pytest.raises(MalformedModel, match=r"is a link to \.\./\.\./blobs/4f2a, which is not there"):
        built(llama)
    assert model_revision(llama)


def test_a_folder_in_place_of_the_weights_is_told(llama: Path):
    (llama / "model.safetensors").unlink()
    (llama / "model.safetensors").mkdir()
    with pytest.raises(MalformedModel, match=r"model\.safetensors cannot be read: Is a directory"):
        built(llama)


def test_no_weights_at_all(llama: Path):
    (llama / "model.safetensors").unlink()
    with pytest.raises(MalformedModel, match="holds no weights"):
        built(llama)


def test_pickles_are_refused_unless_asked_for(llama: Path):
    expected = built(llama).lm_head
    torch.save(load_file(llama / "model.safetensors"), llama / "pytorch_model.bin")
    (llama / "model.safetensors").unlink()
    with pytest.raises(PickleRefused, match="load_format='pt'"):
        built(llama)
    assert torch.equal(built(llama, load_format="pt").lm_head, expected)


class Payload:
    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


def test_a_pickle_that_holds_code_does_not_run_even_when_asked_for(llama: Path, capsys: pytest.CaptureFixture[str]):
    torch.save({"lm_head.weight": Payload()}, llama / "pytorch_model.bin")
    with pytest.raises(MalformedModel, match="truncated or damaged"):
        built(llama, load_format="pt")
    assert "must not run" not in capsys.readouterr().out


def test_an_unknown_load_format_is_refused(llama: Path):
    with pytest.raises(MalformedModel, match="load_format 'gguf'"):
        built(llama, load_format="gguf")


def test_the_size_of_the_weights_is_known_before_they_are_allocated(llama: Path):
    held = load_file(llama / "model.safetensors")
    expected = sum(tensor.numel() for tensor in held.values()) * 2
    assert weights_nbytes(ModelConfig.from_directory(llama), torch.bfloat16) == expected
