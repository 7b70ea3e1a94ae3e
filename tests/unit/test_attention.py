"""Attention of rows and of stretches equals the formula, value and gradients, by every kernel."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from live_memory import LiveMemory

from megatron_qwen3.model.attention import attention
from megatron_qwen3.model.reads import Reads
from megatron_qwen3.model.stretches import Stretches
from tests import gpu_kernels

S, B, N, G, D = 7, 3, 4, 2, 8
STARTS = {
    "whole rows": [[0], [0], [0]],
    "of all sizes": [[0, 1, 4], [0], [0, 6]],
    "equal neighbours": [[0, 3, 6], [0, 1, 2, 3], [0, 2, 4]],
    "one token each": [[*range(S)], [*range(S)], [0]],
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Where others keep the processor busy, threads wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def in_chunks(chunk):
    """Ours, by the rectangles of Dual Chunk Attention without its rotations: the same sum."""

    def ours(q, k, v, stretches=None):
        length, rows = q.shape[:2]
        return attention(q, k, v, Reads.of(rows, length, stretches, chunk=chunk))

    return ours


def in_pieces(*pieces, chunk=None):
    """Ours, as many times as there are pieces, each with its part of the queries and all keys."""

    def ours(q, k, v, stretches=None):
        length, rows = k.shape[:2]
        mixed = [None] * length
        for first, last in pieces:
            reads = Reads.of(rows, length, stretches, [(first, last)], chunk)
            mixed[first:last] = attention(q[first:last], k, v, reads).unbind()
        return torch.stack(mixed)

    return ours


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


@pytest.mark.parametrize("make", [randn, strided, transposed])
@pytest.mark.parametrize("groups", [1, G, N])
@pytest.mark.parametrize("chunk", [1, 2, 3, S, 9])
@pytest.mark.parametrize("starts", [None, *STARTS.values()], ids=["none", *STARTS])
def test_merged_rectangles_equal_the_formula(make, groups, chunk, starts):
    check_equal(in_chunks(chunk), heads(make, groups=groups), starts and Stretches.of(starts, S))


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("starts", [None, *STARTS.values()], ids=["none", *STARTS])
def test_queries_of_a_part_of_each_row_read_all_of_its_keys(chunk, starts):
    pieces = in_pieces((0, 3), (3, 4), (4, S), chunk=chunk)
    check_equal(pieces, heads(strided), starts and Stretches.of(starts, S))


def test_long_rectangles_equal_the_formula_in_float32():
    starts = Stretches.of([[0, 130, 131], [0, 299], [0, 150]], 300)
    check_equal(in_chunks(64), heads(randn, 300, dtype=torch.float32), starts, tolerance=2e-6)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_gradients_are_those_of_differences_whatever_the_geometry(data):
    length = data.draw(st.integers(1, 9))
    places = st.sets(st.integers(1, length)).map(lambda s: [0, *sorted(s - {length})])
    stretches = Stretches.of([data.draw(places) for _ in range(2)], length)
    cuts = [*data.draw(places), length]
    pieces = data.draw(st.permutations([*itertools.pairwise(cuts)]))
    pieces = pieces[: data.draw(st.integers(1, len(pieces)))]
    reads = Reads.of(2, length, stretches, pieces, data.draw(st.sampled_from([None, 1, 2, 3, 5])))
    inputs = [randn(n, 2, h, 2) for n, h in ((reads.queries, 2), (length, 1), (length, 1))]
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, reads), inputs, fast_mode=True)


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


def test_memory_of_attention_is_linear_in_the_length_of_rows_and_the_formula_is_not():
    lengths = [2048, 4096, 8192, 16384]
    assert grown(of_stretches, lengths) <= 1.05
    assert grown(lambda q, k, v, _: attention(q, k, v), lengths) <= 1.05
    assert grown(in_chunks(700), lengths[:3]) <= 1.05
    assert grown(plain_attention, [256, 512, 1024, 2048]) > 1.8


@pytest.fixture(params=["flash", "efficient"])
def as_on_a_gpu(monkeypatch, request):
    gpu_kernels.install(monkeypatch, has_flash=request.param == "flash")


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
def test_the_branches_for_gpus_give_kernels_what_they_take(starts):
    check_equal(of_stretches, heads(strided), Stretches.of(starts, S))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("starts", STARTS.values(), ids=STARTS)
def test_the_branches_for_gpus_merge_rectangles(starts):
    check_equal(in_chunks(2), heads(strided), Stretches.of(starts, S))
    check_equal(in_pieces((4, 6), (0, 4), (6, S)), heads(randn), Stretches.of(starts, S))


def test_reads_of_other_rows_are_refused():
    with pytest.raises(ValueError, match="stretches of 2 rows of 7 places for 3 rows of 7 places"):
        Reads.of(B, S, Stretches.of([[0]] * 2, S))
    with pytest.raises(
        ValueError,
        match="3 rows of 7 queries and 7 keys, but `reads` of 3 rows of 8 queries and 8 keys",
    ):
        attention(*heads(randn), Reads.of(B, 8))
    with pytest.raises(ValueError, match="`tables` are of the places of chunks"):
        attention(*heads(randn), None, (torch.ones(2, S, 1, 1, D),) * 3)
