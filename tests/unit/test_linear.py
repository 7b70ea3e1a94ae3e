"""A model that only generates multiplies by the weights that its linears hold, packed or not."""

import re
from pathlib import Path

import pytest
import torch

import megatron_qwen3
from megatron_qwen3.model.linear import Products, _is_packable


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("rows", [1, 4, 9])
@pytest.mark.parametrize("shape", [(24, 16), (2048, 513)])
def test_products_are_those_of_the_weight(places, rows, shape):
    weight = torch.nn.Parameter(torch.randn(shape))
    products = Products()
    with torch.no_grad():
        for _ in range(2):
            x = torch.randn(places, rows, shape[1])
            expected = (x.double() @ weight.double().t()).float()
            torch.testing.assert_close(products.of(x, weight), expected, rtol=1e-5, atol=1e-4)


def test_the_products_of_one_generation_know_nothing_of_the_weights_of_another():
    weight, x = torch.nn.Parameter(torch.randn(2048, 512)), torch.randn(1, 8, 512)
    with torch.no_grad():
        before = Products().of(x, weight)
        weight.mul_(2)
        torch.testing.assert_close(Products().of(x, weight), 2 * before)


def test_weights_in_bf16_are_never_packed_which_few_processors_can():
    large = torch.nn.Parameter(torch.randn(2048, 513))
    assert _is_packable(large) and not _is_packable(large.bfloat16())


@pytest.mark.parametrize("folder", ["cpu", "generate", "model", "parallel", "training"])
def test_no_module_has_another_forward_put_in_its_place(folder):
    patched = re.compile(r"\.forward = |setattr\([^)]*[\"']forward[\"']")
    files = list((Path(megatron_qwen3.__file__).parent / folder).glob("*.py"))
    assert files
    assert [path for path in files if patched.search(path.read_text(encoding="utf-8"))] == []
