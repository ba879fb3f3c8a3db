import pytest
import torch
from torch.nn import functional

from quire_runtime.model.layers.linear import ONEDNN_FROM, linear


@pytest.mark.parametrize("tokens", [1, 2, 7, 64])
@pytest.mark.parametrize("has_bias", [False, True])
def test_both_libraries_agree(tokens: int, has_bias: bool):
    x, weight = torch.randn(tokens, 256), torch.randn(1536, 256)
    bias = torch.randn(1536) if has_bias else None
    assert (tokens * weight.numel() >= ONEDNN_FROM) == (tokens > 1)
    torch.testing.assert_close(linear(x, weight, bias), functional.linear(x, weight, bias), atol=2e-4, rtol=1e-4)


def test_rows_of_a_wider_tensor_are_taken_as_they_are():
    x, weight = torch.randn(8, 512)[:, :256], torch.randn(1024, 256)
    torch.testing.assert_close(linear(x, weight), functional.linear(x.contiguous(), weight), atol=2e-4, rtol=1e-4)
