import numpy as np
import pytest
import torch

from quire_runtime.execute.logprobs import top_logprobs


@pytest.mark.parametrize("is_deterministic", [False, True])
def test_logprobs_are_of_the_chosen_token_and_then_of_the_likeliest(is_deterministic):
    logits = torch.randn(4, 100) * 3
    chosen = torch.tensor([0, 99, 5, 5])
    found = top_logprobs(logits, chosen, np.arange(4), [3, 0, 1, 3], is_deterministic)
    every = logits.log_softmax(dim=-1)
    assert found.tokens[:, 0].tolist() == chosen.tolist()
    torch.testing.assert_close(found.logprobs, every.gather(1, found.tokens.long()))
    for row in range(4):
        assert found.ranks[row] == 1 + (logits[row] > logits[row, chosen[row]]).sum()
        torch.testing.assert_close(found.logprobs[row, 1:], every[row].sort(descending=True).values[:3])
