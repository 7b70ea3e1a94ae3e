"""Attention of rows and of stretches equals the formula, value and gradients, by every kernel."""

import types

import numpy as np
import pytest
import torch
from live_memory import LiveMemory

from megatron_qwen3.cpu import kernels
from megatron_qwen3.model import attention as module
from megatron_qwen3.model.attention import attention
from megatron_qwen3.model.reads import Reads
from megatron_qwen3.model.stretches import Stretches

S, B, N, G, D = 7, 3, 4, 2, 8
STARTS = {
    "whole rows": [[0], [0], [0]],
    "of all sizes": [[0, 1, 4], [0], [0, 6]],
    "equal neighbours": [[0, 3, 6], [0, 1, 2, 3], [0, 2, 4]],
    "one token each": [[*range(S)], [*range(S)], [0]],
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def plain_attention(q, k, v, stretches=None):
    """By a matrix of who sees whom, made of the definition."""
    length, rows = q.shape[:2]
    k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], 2) for t in (k, v))
    sees = torch.ones(rows, length, length, dtype=torch.bool).tril()
    if stretches is not None:
        ends = torch.tensor(stretches.bounds[1:])
        text = torch.bucketize(torch.arange(rows * length), ends, right=True).view(rows, length)
        sees &= text[:, :, None] == text[:, None, :]
    scores = torch.einsum("sbnd,tbnd->bnst", q, k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~sees[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bnst,tbnd->sbnd", weights, v).flatten(2)


def randn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def strided(*shape, dtype=torch.float64):
    """In memory that is not contiguous, as slices of a fused projection are."""
    wide = torch.randn(*shape[:-1], 3 * shape[-1], dtype=dtype)
    return wide[..., shape[-1] : 2 * shape[-1]].detach().requires_grad_()


def transposed(*shape, dtype=torch.float64):
    """Whose last dimension is not the one that lies together."""
    return torch.randn(*reversed(shape), dtype=dtype).permute(3, 2, 1, 0).requires_grad_()


def heads(make, length=S, groups=G, **kwargs):
    return [make(length, B, n, D, **kwargs) for n in (N, groups, groups)]


def of_stretches(q, k, v, stretches=None):
    """Ours, of rows that are cut into stretches."""
    reads = stretches and Reads.of(stretches.rows, stretches.length, stretches)
    return attention(q, k, v, reads)


def check_equal(ours, inputs, stretches=None, tolerance=1e-10):
    got, expected = ours(*inputs, stretches), plain_attention(*inputs, stretches)
    grad = torch.randn(*reversed(got.shape), dtype=got.dtype).permute(2, 1, 0)
    got = got, *torch.autograd.grad(got, inputs, grad)
    expected = expected, *torch.autograd.grad(expected, inputs, grad)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", [randn, strided, transposed])
@pytest.mark.parametrize("length", [1, S, 300])
@pytest.mark.parametrize("groups", [1, G, N])
def test_attention_of_rows_equals_the_formula(make, length, groups):
    check_equal(of_stretches, heads(make, length, groups))


@pytest.mark.parametrize("make", [randn, strided, transposed])
@pytest.mark.parametrize("groups", [1, G, N])
@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
def test_attention_of_stretches_equals_the_formula(make, groups, starts):
    check_equal(of_stretches, heads(make, groups=groups), Stretches.of(starts, S))


def test_attention_of_long_stretches_equals_the_formula():
    starts = Stretches.of([[0, 130, 131], [0, 299], [0, 150]], 300)
    check_equal(of_stretches, heads(randn, 300), starts)


def test_attention_of_a_position_does_not_see_later_ones():
    q, k, v = heads(randn)
    early = attention(q, k, v)[: S - 1]
    torch.testing.assert_close(early, attention(q[: S - 1], k[: S - 1], v[: S - 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stretch_has_the_same_bits_whatever_stands_beside_it(dtype):
    stretches = Stretches.of([[0, 3], [0, 2, 5], [0]], S)
    q, k, v = heads(randn, dtype=dtype)
    before = of_stretches(q, k, v, stretches)
    grads = torch.autograd.grad(before[3:, 0].float().sum(), (q, k, v))
    with torch.no_grad():
        for x in (q, k, v):
            x[:3, 0] = torch.nan
            x[:, 1:] = 7.0
    after = of_stretches(q, k, v, stretches)
    assert torch.equal(after[3:, 0], before[3:, 0])
    again = torch.autograd.grad(after[3:, 0].float().sum(), (q, k, v))
    for x, y in zip(grads, again, strict=True):
        assert torch.equal(x[3:, 0], y[3:, 0]) and not x[:3, 0].any() and not x[:, 1:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_text_of_one_token_gives_its_value_and_has_no_gradient_by_its_score(dtype):
    inputs = heads(randn, dtype=dtype)
    mixed = of_stretches(*inputs, Stretches.of([[*range(S)]] * B, S))
    v_SBND = inputs[2].repeat_interleave(N // G, dim=2)
    assert torch.equal(mixed, v_SBND.flatten(2))
    grad = torch.randn_like(mixed)
    grad_q, grad_k, grad_v = torch.autograd.grad(mixed, inputs, grad)
    small = 10 * torch.finfo(dtype).eps * float(grad.abs().max())
    assert grad_q.abs().max() <= small and grad_k.abs().max() <= small
    torch.testing.assert_close(grad_v, grad.view(S, B, G, N // G, D).sum(3))


def test_a_stretch_of_all_rows_gives_what_rows_give():
    inputs = heads(randn, dtype=torch.float32)
    whole = of_stretches(*inputs, Stretches.of([[0]] * B, S))
    assert torch.equal(whole, attention(*inputs))


def test_without_gradients_the_bits_are_the_same():
    inputs, stretches = heads(randn, dtype=torch.float32), Stretches.of(STARTS["of all sizes"], S)
    with torch.no_grad():
        assert torch.equal(of_stretches(*inputs, stretches), of_stretches(*inputs, stretches))
        without = of_stretches(*inputs, stretches)
    assert torch.equal(without, of_stretches(*inputs, stretches))


@pytest.mark.parametrize("stretches", [None, Stretches.of(STARTS["of all sizes"], S)])
def test_bfloat16_agrees_with_float32_to_its_precision(stretches):
    inputs = heads(randn, dtype=torch.bfloat16)
    wide = [x.detach().float().requires_grad_() for x in inputs]
    got, expected = of_stretches(*inputs, stretches), of_stretches(*wide, stretches)
    grad = torch.randn_like(expected)
    got = got, *torch.autograd.grad(got, inputs, grad.bfloat16())
    expected = expected, *torch.autograd.grad(expected, wide, grad.bfloat16().float())
    for a, e in zip(got, expected, strict=True):
        assert a.dtype == torch.bfloat16
        atol = 0.05 * float(e.detach().abs().max())
        torch.testing.assert_close(a.float(), e, rtol=0.05, atol=atol)


def grown(function, lengths):
    """The exponent of growth of the most bytes that live at a time, fitted to all lengths."""
    peaks = []
    for length in lengths:
        inputs = [torch.randn(length, 1, n, D, requires_grad=True) for n in (2, 1, 1)]
        # Documents of 1 to 999 tokens, in any order, and one that is a quarter of the row.
        starts = {0, *range(length // 4, length, 500), *range(length // 4 + 1, length, 1499)}
        stretches = Stretches.of([sorted(starts)], length)
        with LiveMemory() as memory:
            function(*inputs, stretches).sum().backward()
        peaks.append(memory.peak_bytes)
    return np.polyfit(np.log(lengths), np.log(peaks), 1)[0]


@pytest.fixture
def one_thread():
    """Where others keep the processor busy, threads wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_memory_of_attention_is_linear_in_the_length_of_rows_and_the_formula_is_not():
    lengths = [2048, 4096, 8192, 16384]
    assert grown(of_stretches, lengths) <= 1.05
    assert grown(lambda q, k, v, _: attention(q, k, v), lengths) <= 1.05
    assert grown(plain_attention, [256, 512, 1024, 2048]) > 1.8


class _AsOnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    is_cuda = True


def _varlen(q, k, v, bounds_q, bounds_k, most_q, most_k, dropout, is_causal, debug):
    """What _flash_attention_forward promises, [T, n, D], one place after the other."""
    assert torch.equal(bounds_q, bounds_k) and most_q == most_k == int(bounds_q.diff().max())
    assert (dropout, is_causal, debug) == (0.0, True, False)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    mixed = []
    for begin, end in zip(bounds_q[:-1].tolist(), bounds_q[1:].tolist(), strict=True):
        for place in range(begin, end):
            seen = slice(begin, place + 1)
            score = torch.einsum("nd,tnd->nt", q[place], k[seen]) / q.shape[-1] ** 0.5
            mixed.append(torch.einsum("nt,tnd->nd", score.softmax(-1), v[seen]))
    return torch.stack(mixed), None, None, None, None


@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("has_packed_kernel", [True, False])
def test_the_branches_for_gpus_give_kernels_what_they_take(monkeypatch, starts, has_packed_kernel):
    stretches, inputs = Stretches.of(starts, S), heads(strided)
    kernel = types.SimpleNamespace(_flash_attention_forward=_varlen)
    monkeypatch.setattr(module, "_aten", kernel)
    monkeypatch.setattr(kernels, "has_packed_attention", lambda q: has_packed_kernel)

    def ours(q, k, v, stretches):
        return of_stretches(q.as_subclass(_AsOnGpu), k, v, stretches).as_subclass(torch.Tensor)

    check_equal(ours, inputs, stretches)


def test_reads_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="stretches of 2 rows of 7 places for 3 rows of 7 places"):
        Reads.of(B, S, Stretches.of([[0]] * 2, S))
    with pytest.raises(
        ValueError,
        match="3 rows of 7 queries and 7 keys, but `reads` of 3 rows of 8 queries and 8 keys",
    ):
        attention(*heads(randn), Reads.of(B, 8))
