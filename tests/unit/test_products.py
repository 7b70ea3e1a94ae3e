"""Products by oneDNN are the products that torch makes, whatever the shape and the strides."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks

from megatron_qwen3.cpu import products

SIZES = st.sampled_from((1, 3, 64, 200, 520, 1100))


@pytest.fixture(params=[False, True], ids=["torch", "onednn"])
def library(request, monkeypatch):
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: request.param)
    return request.param


def matrix(rows: int, columns: int, layout: str) -> torch.Tensor:
    if layout == "by columns":
        return torch.randn(columns, rows).t()
    if layout == "part of a wider one":
        return torch.randn(rows, columns + 5)[:, 2 : columns + 2]
    return torch.randn(rows, columns)


LAYOUTS = st.sampled_from(("by rows", "by columns", "part of a wider one"))


def near(value: torch.Tensor, exact: torch.Tensor, terms: int) -> bool:
    """Within the rounding error of a sum of products of normal numbers."""
    return bool((value.double() - exact).abs().max() <= 2e-5 * terms**0.5)


@given(M=SIZES, K=SIZES, N=SIZES, layouts=st.tuples(LAYOUTS, LAYOUTS), adds=st.booleans())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("onednn", [False, True])
def test_products_of_any_shape_and_strides(onednn, M, K, N, layouts, adds):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "onednn_is_faster", lambda: onednn)
        a, b = matrix(M, K, layouts[0]), matrix(K, N, layouts[1])
        exact = a.double() @ b.double()
        assert near(products.product(a, b), exact, K)
        out = torch.randn(M, N)
        expected = exact + out.double() if adds else exact
        products.write_product(out, a, b, adds)
        assert near(out, expected, K)


@pytest.mark.parametrize("sizes", [[0, 0, 0], [0, 700, 1], [3, 0, 2]])
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 12), (7, 12), (8, 5), (64, 64)])
def test_a_grouped_product_is_that_of_each_expert(library, sizes, inputs, outputs):
    rows, weight = torch.randn(sum(sizes), inputs), torch.randn(len(sizes), outputs, inputs)
    ours = products.grouped_product(rows, weight.mT, sizes)
    pairs = zip(rows.double().split(sizes), weight.double(), strict=True)
    exact = torch.cat([x @ w.t() for x, w in pairs])
    assert ours.shape == exact.shape
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-5 * inputs**0.5)


def test_a_grouped_product_takes_rows_and_weights_that_lie_anywhere(library):
    """A share of a flat buffer of parameters may begin between blocks of 16 bytes."""
    rows, weight = torch.randn(1 + 5 * 8)[1:].view(5, 8), torch.randn(1 + 2 * 32)[1:].view(2, 4, 8)
    ours = products.grouped_product(rows, weight.mT, [2, 3])
    exact = torch.cat([rows[:2] @ weight[0].t(), rows[2:] @ weight[1].t()])
    torch.testing.assert_close(ours, exact)


def test_a_batch_of_rows_keeps_its_shape(library):
    a, b = torch.randn(8, 40, 512), torch.randn(512, 512)
    torch.testing.assert_close(products.product(a, b), a @ b, rtol=1e-5, atol=1e-4)


def test_autograd_still_follows_matmul(library):
    a, b = (torch.randn(512, 512, requires_grad=True) for _ in range(2))
    products.matmul(a, b).sum().backward()
    torch.testing.assert_close(a.grad, b.detach().sum(1).expand(512, 512), rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        assert not products.matmul(a, b).requires_grad


def test_other_types_and_small_products_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_onednn", None)
    small, large = torch.randn(8, 8), torch.randn(512, 512)
    products.product(small, small)
    products.product(large.double(), large.double())
    products.product(large.bfloat16(), large.bfloat16())
    with pytest.raises(TypeError):
        products.product(large, large)


def test_where_types_differ_there_is_one_product_whatever_the_processor(library):
    a, b = torch.randn(64, 1100).bfloat16(), torch.randn(1100, 64).bfloat16()
    out = torch.full((64, 64), torch.nan)
    products.write_product(out, a, b, adds=False)
    assert torch.equal(out, (a @ b).float())
    products.write_product(out, a, b, adds=True)
    assert torch.equal(out, (a @ b).float() * 2)


@pytest.mark.parametrize("asked", ["on", "off"])
def test_the_environment_decides_in_place_of_the_processor(monkeypatch, asked):
    if asked == "on" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setenv("QWEN3_ONEDNN", asked)
    assert products.onednn_is_faster.__wrapped__() == (asked == "on")


def test_a_choice_that_is_none_is_refused_with_the_valid_ones(monkeypatch):
    monkeypatch.setenv("QWEN3_ONEDNN", "1")
    with pytest.raises(ValueError, match="QWEN3_ONEDNN=1: valid: .*off"):
        products.onednn_is_faster.__wrapped__()
    monkeypatch.setenv("QWEN3_ONEDNN", "on")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no oneDNN"):
        products.onednn_is_faster.__wrapped__()


def of_a_rank():
    return products.onednn_is_faster()


@pytest.mark.skipif("QWEN3_ONEDNN" not in os.environ, reason="make test-machines sets it")
def test_ranks_choose_as_the_whole_run_was_asked_to():
    asked = os.environ["QWEN3_ONEDNN"] == "on"
    assert products.onednn_is_faster() == asked
    assert run_ranks(of_a_rank, 2) == [asked, asked]
