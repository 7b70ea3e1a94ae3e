"""Norms of gradients hold seven digits, whatever the size."""

import pytest
import torch

from megatron_qwen3.cpu.norms import norms


@pytest.mark.parametrize("shape", [(1,), (33,), (1024,), (7, 1025), (5_000_000,)])
def test_norms_are_those_of_float64(shape):
    torch.manual_seed(0)
    tensors = [torch.randn(shape), torch.zeros(shape), 1e-3 * torch.rand(shape)]
    exact = torch.stack([tensor.double().norm() for tensor in tensors]).float()
    torch.testing.assert_close(norms(tensors), exact, rtol=1e-6, atol=0)


def test_one_number_that_is_not_finite_makes_the_norm_so():
    tensors = [torch.ones(3000) for _ in range(2)]
    tensors[0][2999], tensors[1][5] = torch.inf, torch.nan
    assert norms(tensors).tolist()[0] == torch.inf
    assert norms(tensors)[1].isnan()
