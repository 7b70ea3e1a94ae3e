"""Values and gradients of the hand-written operations equal those of the plain formulas."""

import functools

import pytest
import torch
import torch.nn.functional as F
from live_memory import LiveMemory

from megatron_qwen3.model import grouped, heads, ops

S, B, N, G, D, H = 7, 3, 4, 2, 8, 10


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def plain_norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weight


def plain_swiglu(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def tables(dtype=torch.float64):
    angle = torch.outer(torch.arange(S, dtype=dtype), 10.0 ** -torch.arange(D // 2, dtype=dtype))
    angle = angle.repeat(1, 2)[:, None, None, :]
    return angle.cos(), angle.sin()


def plain_rope(x, cos, sin):
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def plain_experts(rows, probs, counts, weight1, weight2):
    outputs = [
        plain_swiglu(x @ w1.T) @ w2.T
        for x, w1, w2 in zip(rows.split(counts.tolist()), weight1, weight2, strict=True)
    ]
    return torch.cat(outputs) * probs[:, None]


def randn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def strided(*shape, dtype=torch.float64):
    """The same values in memory that is not contiguous, as slices of a fused projection are."""
    wide = torch.randn(*shape[:-1], 3 * shape[-1], dtype=dtype)
    return wide[..., shape[-1] : 2 * shape[-1]].detach().requires_grad_()


def check_equal(ours, plain, *inputs, tolerance=1e-10):
    """Outputs, and gradients for a gradient that is itself a transposed view, agree."""
    got, expected = ours(*inputs), plain(*inputs)
    got, expected = (x if isinstance(x, tuple) else (x,) for x in (got, expected))
    trained = [x for x in inputs if x.requires_grad]
    grads = [
        torch.randn(*reversed(x.shape), dtype=x.dtype).permute(*reversed(range(x.ndim)))
        for x in got
    ]
    got += torch.autograd.grad(got, trained, grads)
    expected += torch.autograd.grad(expected, trained, grads)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("make", [randn, strided])
@pytest.mark.parametrize("shape", [(S, B, H), (S, B, N, D), (0, B, H)])
def test_rms_norm_equals_the_formula(make, shape):
    check_equal(lambda x, w: ops.rms_norm(x, w, 1e-6), plain_norm, make(*shape), randn(shape[-1]))


def test_rms_norm_without_gradients_equals_that_with():
    x, weight = randn(S, H), randn(H)
    with torch.no_grad():
        without = ops.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(without, ops.rms_norm(x, weight, 1e-6).detach())


@pytest.mark.parametrize("block", [1, 3 * B * H, 7 * B * G * 4 * D])
def test_norms_have_the_same_gradients_a_block_of_positions_at_a_time(monkeypatch, block):
    monkeypatch.setattr(ops, "_BLOCK", block)
    check_equal(lambda x, w: ops.rms_norm(x, w, 1e-6), plain_norm, strided(S, B, H), randn(H))
    inputs = strided(S, B, G, 3 + 2, D), randn(D), randn(D)
    check_equal(our_heads, plain_heads, *inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_long_rows_norms_take_no_copies_of_all_of_it(monkeypatch, dtype):
    x, weight = torch.randn(4096, 1, 4, 16).to(dtype), torch.randn(4, 16).to(dtype)
    grad, grad_x = torch.randn_like(x), torch.empty_like(x)
    _, scale = ops.normalized(x, weight, 1e-6)
    monkeypatch.setattr(ops, "_BLOCK", block := x.numel() // 16)
    with LiveMemory() as memory:
        ops.norm_gradient(x, weight, scale, grad, grad_x)
    assert memory.peak_bytes <= 5 * 4 * block  # four copies, and small things


@pytest.mark.parametrize("make", [randn, strided])
@pytest.mark.parametrize("rows", [0, 5, 700])
def test_swiglu_equals_the_formula(make, rows):
    check_equal(ops.swiglu, plain_swiglu, make(rows, 2, 2 * H))


@pytest.mark.parametrize("make", [randn, strided])
def test_rope_equals_the_formula(make):
    def both(q, k):
        return tuple(plain_rope(x, *tables()) for x in (q, k))

    check_equal(lambda q, k: ops.rope(q, k, *tables()), both, make(S, B, N, D), make(S, B, G, D))


def plain_heads(qkv, q_weight, k_weight):
    q, k, v = qkv.split([qkv.shape[3] - 2, 1, 1], 3)
    q, k = plain_norm(q, q_weight).flatten(2, 3), plain_norm(k, k_weight).squeeze(3)
    return plain_rope(q, *tables()), plain_rope(k, *tables()), v.squeeze(3)


def plain_heads_with_keys_rotated(qkv, q_weight, k_weight):
    normed = plain_norm(qkv[..., :-2, :], q_weight).flatten(2, 3)
    return normed, *plain_heads(qkv, q_weight, k_weight)[1:]


def our_heads(qkv, q_weight, k_weight, rotates_queries=True):
    weights, rotation = (q_weight, k_weight), tables(qkv.dtype)
    return heads.query_key_value(qkv, *weights, *rotation, 1e-6, rotates_queries)


@pytest.mark.parametrize("make", [randn, strided])
@pytest.mark.parametrize("heads_per_group", [1, 3])
def test_heads_equal_split_norm_and_rope(make, heads_per_group):
    inputs = make(S, B, G, heads_per_group + 2, D), randn(D), randn(D)
    check_equal(our_heads, plain_heads, *inputs)


@pytest.mark.parametrize("heads_per_group", [1, 3])
def test_queries_that_attention_rotates_are_normed_alone(heads_per_group):
    inputs = randn(S, B, G, heads_per_group + 2, D), randn(D), randn(D)
    ours = functools.partial(our_heads, rotates_queries=False)
    check_equal(ours, plain_heads_with_keys_rotated, *inputs)
    branch = _by_gpu_branch(*inputs, rotates_queries=False)
    for a, b in zip(ours(*inputs), branch, strict=True):
        torch.testing.assert_close(a, b)


class _AsOnGpu:
    """A tensor that says it is on a GPU: its branch is made of operations that a CPU has too."""

    is_cuda = True

    def __init__(self, tensor):
        self.tensor, self.shape = tensor, tensor.shape

    def split(self, sizes, dim):
        return self.tensor.split(sizes, dim)


def test_heads_by_the_branch_for_gpus_are_the_same():
    inputs = randn(S, B, G, 5, D), randn(D), randn(D)
    for ours, branch in zip(our_heads(*inputs), _by_gpu_branch(*inputs), strict=True):
        torch.testing.assert_close(ours, branch)


def _by_gpu_branch(qkv, *weights, **how):
    return heads.query_key_value(_AsOnGpu(qkv), *weights, *tables(), eps=1e-6, **how)


def test_heads_of_bf16_are_within_its_rounding_and_the_same_without_gradients():
    inputs = [randn(*shape, dtype=torch.bfloat16) for shape in ((S, B, G, 4, D), (D,), (D,))]
    ours = our_heads(*inputs)
    for got, expected in zip(ours, plain_heads(*(x.double() for x in inputs)), strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), expected, rtol=0.02, atol=0.02)
    with torch.no_grad():
        without = our_heads(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(ours, without, strict=True))
    gradient = torch.autograd.grad(sum(x.float().sum() for x in ours), inputs)
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in gradient)


@pytest.mark.parametrize("counts", [[5, 0, 7, 0], [0, 0, 0, 12], [0, 0, 0, 0], [3, 3, 3, 3]])
@pytest.mark.parametrize("make", [randn, strided])
def test_experts_equal_a_loop_even_where_some_get_no_token(counts, make):
    counts_E = torch.tensor(counts)
    rows = int(counts_E.sum())
    inputs = make(rows, H), randn(rows), counts_E, randn(4, 2 * D, H), randn(4, H, D)
    check_equal(grouped.experts, plain_experts, *inputs)


def test_accumulated_expert_gradients_are_what_is_returned_otherwise():
    counts = torch.tensor([5, 0, 3])
    inputs = randn(8, H), randn(8), counts, randn(3, 2 * D, H), randn(3, H, D)
    weights = inputs[3:]
    returned = torch.autograd.grad(grouped.experts(*inputs).sum(), weights)
    for weight in weights:
        weight.main_grad = torch.ones_like(weight)
    for _ in range(2):
        grouped.experts(*inputs, accumulate=True).sum().backward()
    for weight, gradient in zip(weights, returned, strict=True):
        assert weight.grad_added_to_main_grad
        torch.testing.assert_close(weight.main_grad, 1 + 2 * gradient)


@pytest.mark.parametrize("chosen", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tokens_spread_and_collected_equal_dense_routing(chosen, dtype):
    experts_TK = torch.rand(11, 6).topk(chosen).indices
    order = grouped.sort_by_expert(experts_TK, 6)
    assert order.counts.tolist() == torch.bincount(experts_TK.flatten(), minlength=6).tolist()
    assert experts_TK.flatten()[order.rows].tolist() == sorted(experts_TK.flatten().tolist())

    def ours(hidden, scale):
        return grouped.gather_tokens(grouped.scatter_tokens(hidden, order) * scale, order)

    def plain(hidden, scale):
        by_pair = torch.zeros_like(scale).index_copy(0, order.rows, scale)
        return hidden * by_pair.view(11, chosen).sum(1, keepdim=True)

    hidden, scale = randn(11, H, dtype=dtype), randn(11 * chosen, 1, dtype=dtype)
    check_equal(ours, plain, hidden, scale, tolerance=1e-5 if dtype == torch.float32 else 1e-10)


def test_sorting_keeps_the_order_of_tokens_within_an_expert():
    order = grouped.sort_by_expert(torch.zeros(50, 1, dtype=torch.int64), 3)
    assert order.rows.tolist() == list(range(50))


def test_bfloat16_results_are_the_float32_ones_rounded():
    """Statistics and products inside are not in bfloat16: one rounding, of the result."""
    x, weight = randn(S, B, 512, dtype=torch.bfloat16), randn(512, dtype=torch.bfloat16)
    inside = ops.rms_norm(x, weight, 1e-6)
    wide = ops.rms_norm(x.float(), weight.float(), 1e-6)
    assert inside.dtype == torch.bfloat16
    torch.testing.assert_close(inside, wide.bfloat16(), rtol=0, atol=0)


def test_bfloat16_is_rotated_as_float32_and_rounded_once_forward_and_backward():
    q, k = (randn(S, B, n, D, dtype=torch.bfloat16) for n in (N, G))
    wide = [x.detach().float().requires_grad_() for x in (q, k)]
    cos_sin = tables(torch.float32)
    inside, outside = ops.rope(q, k, *cos_sin), [plain_rope(x, *cos_sin) for x in wide]
    grads = [torch.randn(x.shape, dtype=torch.bfloat16) for x in (q, k)]
    inside += torch.autograd.grad(inside, (q, k), grads)
    outside += torch.autograd.grad(outside, wide, [grad.float() for grad in grads])
    for got, expected in zip(inside, outside, strict=True):
        # A rounding of float32 may tip one of bfloat16 over: by one unit in the last place.
        torch.testing.assert_close(got, expected.bfloat16(), rtol=2**-7, atol=0)
        assert (got == expected.bfloat16()).float().mean() > 0.99


def test_heads_of_bf16_are_normed_and_rotated_with_one_rounding_each():
    inputs = [randn(*shape, dtype=torch.bfloat16) for shape in ((S, B, G, 4, D), (D,), (D,))]
    qkv, *weights = (x.detach().float() for x in inputs)
    cos_sin = tables(torch.float32)
    for got, slots, weight in zip(
        heads.query_key_value(*inputs, *cos_sin, eps=1e-6)[:2],
        (slice(0, 2), slice(2, 3)),
        weights,
        strict=True,
    ):
        normed = plain_norm(qkv[..., slots, :], weight).flatten(2, 3).bfloat16().float()
        expected = plain_rope(normed, *cos_sin).bfloat16()
        assert (got == expected).float().mean() > 0.99
        torch.testing.assert_close(got, expected, rtol=2**-6, atol=2**-8)


def test_the_gradient_of_a_probability_is_summed_in_float32_where_experts_are_bfloat16():
    """Of small whole numbers, which bfloat16 holds; their sum needs more digits."""
    rows, width, hidden = 6, 64, 8
    integers = lambda most, *shape: torch.randint(-most, most + 1, shape).float()  # noqa: E731
    up, down, grad = (
        integers(100, width, hidden),
        integers(2, hidden, width),
        integers(3, rows, hidden),
    )
    weight1 = torch.cat([torch.full((width, hidden), 64.0), up])[None]  # silu(64) is 64
    picked = torch.eye(hidden)[torch.arange(rows) % hidden]
    probs = torch.ones(rows, requires_grad=True)
    counts, low = torch.tensor([rows]), torch.bfloat16
    output = grouped.experts(picked.to(low), probs, counts, weight1.to(low), down[None].to(low))
    output.backward(grad.to(low))
    expected = ((grad @ down) * 64 * (picked @ up.t())).sum(1)
    assert (expected != expected.bfloat16()).any()
    assert torch.equal(probs.grad, expected)


@pytest.mark.parametrize("name", ["swiglu", "rope", "experts"])
def test_bfloat16_agrees_with_float32_to_its_precision(name):
    b = torch.bfloat16
    counts = torch.tensor([5, 0, 11])
    cases = {
        "swiglu": (ops.swiglu, [randn(S, B, 2 * H, dtype=b)]),
        "rope": (
            lambda x: ops.rope(x, x, *tables(torch.float32))[0],
            [randn(S, B, N, D, dtype=b)],
        ),
        "experts": (
            lambda x, p, w1, w2: grouped.experts(x, p, counts, w1, w2),
            [randn(*s, dtype=b) for s in ((16, 8), (16,), (3, 16, 8), (3, 8, 8))],
        ),
    }
    function, inputs = cases[name]
    wide = [x.detach().float().requires_grad_() for x in inputs]
    got, expected = function(*inputs), function(*wide)
    grad = torch.randn_like(expected)
    got = got, *torch.autograd.grad(got, inputs, grad.to(b))
    expected = expected, *torch.autograd.grad(expected, wide, grad.to(b).float())
    for a, e in zip(got, expected, strict=True):
        assert a.dtype == b
        torch.testing.assert_close(
            a.float(), e, rtol=0.05, atol=0.05 * float(e.detach().abs().max())
        )
