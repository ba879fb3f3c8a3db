"""A step of one token, whose norms, activation and residual sums are part of its products."""

import pytest
import torch

from quire_runtime.model import decoder


@pytest.mark.parametrize(("family", "config"), [("llama", {"attention_bias": True, "mlp_bias": True}), ("qwen3", {})])
def test_it_says_what_separate_kernels_say(tiny_model_dir, paged_model, monkeypatch, family, config):
    steps = [[5, 9, 200, 31, 7], [11], [12], [300]]
    logits = []
    for is_one in (False, True):
        monkeypatch.setattr(decoder, "takes_one_row", lambda x, is_one=is_one: is_one and x.shape[0] == 1)
        model = paged_model(tiny_model_dir(family, **config))
        logits.append([model.step({0: tokens})[0] for tokens in steps])
    for apart, together in zip(*logits, strict=True):
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
