"""A deterministic engine starts only on a GPU that keeps its word; here the GPU's answers are made up."""

import pytest
import torch

from quire_runtime.engine import load
from quire_runtime.model.config import ModelConfig
from quire_runtime.model.registry import build_model


@pytest.mark.parametrize("wrong", ["products", "attention"])
def test_a_gpu_whose_results_depend_on_the_batch_is_refused(tiny_model_dir, monkeypatch, wrong):
    model = build_model(ModelConfig.from_directory(tiny_model_dir("mistral")), torch.float32, "cpu", 64, True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU of tomorrow")
    monkeypatch.setattr(load, "products_agree", lambda *part: wrong != "products")
    monkeypatch.setattr(load, "attention_agrees", lambda *shape: wrong != "attention")
    with pytest.raises(load.NotDeterministic, match=r"cannot hold on GPU of tomorrow: its .* Serve without it"):
        load.require_invariance(model)
