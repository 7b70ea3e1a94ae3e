"""Dual Chunk Attention equals the reference's definition, place by place, with its gradients."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from live_memory import LiveMemory

from megatron_qwen3.generate.cache import KVCache, Timeline
from megatron_qwen3.model import ops
from megatron_qwen3.model.attention import attention
from megatron_qwen3.model.dca import DualChunk
from megatron_qwen3.model.reads import Reads
from megatron_qwen3.model.stretches import Stretches
from tests import golden, gpu_kernels
from tests.hashed import uniform

GOLDEN = golden.read("dca.json") or {"relative_position_matrices": [], "cases": []}
needs_file = pytest.mark.skipif(not GOLDEN["cases"], reason=f"dca.json is not in {golden.folder()}")
N, G = 4, 2


def named(cases):
    for case in cases:
        fields = ("length", "chunk_size", "local_size", "rule", "documents", "yarn")
        marks = [str(case[name]) for name in fields if name in case]
        yield pytest.param(case, id="-".join(marks))


def yarn_frequencies(inv_freq, base, factor, original):
    """YaRN (arXiv 2309.00071) with beta 32 and 1, and its factor on queries and keys."""
    head_dim = 2 * len(inv_freq)
    low, high = (
        head_dim * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(base))
        for beta in (32, 1)
    )
    low, high = max(math.floor(low), 0), min(math.ceil(high), head_dim - 1)
    ramp = ((torch.arange(len(inv_freq)).double() - low) / (high - low)).clamp(0, 1)
    return inv_freq * (1 - ramp) + inv_freq / factor * ramp, 0.1 * math.log(factor) + 1


def angles(base, head_dim, yarn=None):
    """cos and sin of positions as RotaryTables.at gives them, in float64."""
    inv_freq, factor = base ** (-torch.arange(0, head_dim, 2).double() / head_dim), 1.0
    if yarn:
        inv_freq, factor = yarn_frequencies(inv_freq, base, **yarn)

    def at(position_SB):
        angle = (position_SB[..., None].double() * inv_freq).repeat(1, 1, 2)
        return factor * torch.stack([angle.cos(), angle.sin()])[:, :, :, None]

    return at


def dual_attention(dual, at, q, k, v, stretches=None):
    """Ours, from normed queries and keys, [S, B, n, D]."""
    length, rows = q.shape[:2]
    position_SB = stretches.positions_BS().t() if stretches else torch.arange(length)[:, None]
    k = ops.rotated(k, *dual.key_table(at, position_SB))
    place_S1 = torch.arange(min(length, dual.chunk))[:, None]
    reads = Reads.of(rows, length, stretches, chunk=dual.chunk)
    return attention(q, k, v, reads, dual.query_tables(at, place_S1))


def of_case(case, rule):
    dual = DualChunk(case["chunk_size"], case["local_size"], rule)
    if "length_scale_original" in case:
        dual = dual.for_prompt(case["length"], case["length_scale_original"])
    return dual


def inputs_of(case):
    S, D, seed = case["length"], case["head_dim"], case["seed"]
    scales = ((N, 2, seed), (G, 2, seed + 1), (G, 1, seed + 2))
    heads = [scale * uniform((n, S, D), number) for n, scale, number in scales]
    return [x.permute(1, 0, 2)[:, None].requires_grad_() for x in heads]


def stretches_of(case):
    if "documents" not in case:
        return None
    starts = [0, *itertools.accumulate(case["documents"][:-1])]
    return Stretches.of([starts], case["length"])


@needs_file
@pytest.mark.parametrize("case", named(GOLDEN["relative_position_matrices"]))
def test_positions_are_those_of_the_reference(case):
    dual = DualChunk(case["chunk_size"], case["local_size"], case["rule"])
    place = torch.arange(case["length"]) % dual.chunk
    ours = [position.tolist() for position in dual.query_positions(place)]
    assert ours == case["query_positions_intra_succ_inter"]
    positions = dual.key_table(lambda x: x, torch.arange(case["length"]))
    assert positions.tolist() == case["key_positions"]


@needs_file
@pytest.mark.parametrize("rule", ["code", "paper"])
@pytest.mark.parametrize("case", named(c for c in GOLDEN["cases"] if "output" in c))
def test_attention_in_chunks_equals_the_reference(case, rule):
    at = angles(case["rope_theta"], case["head_dim"], case.get("yarn"))
    mixed = dual_attention(of_case(case, rule), at, *inputs_of(case), stretches_of(case))
    mixed_NSD = mixed.view(case["length"], N, -1).transpose(0, 1)
    expected = torch.tensor(case["output"][rule], dtype=torch.float64)
    ours = mixed_NSD[:, case["rows"]].reshape(expected.shape)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@needs_file
@pytest.mark.parametrize("case", named(c for c in GOLDEN["cases"] if "dq" in c))
def test_gradients_of_attention_in_chunks_equal_the_reference(case):
    inputs, at = inputs_of(case), angles(case["rope_theta"], case["head_dim"])
    mixed = dual_attention(of_case(case, case["rule"]), at, *inputs)
    S, D = case["length"], case["head_dim"]
    loss = (mixed.view(S, N, D).transpose(0, 1) * uniform((N, S, D), case["seed"] + 3)).sum()
    assert float(loss.detach()) == pytest.approx(case["loss_value"], abs=1e-11)
    for ours, name in zip(torch.autograd.grad(loss, inputs), ("dq", "dk", "dv"), strict=True):
        expected = torch.tensor(case[name], dtype=torch.float64)
        ours = ours[:, 0].transpose(0, 1).reshape(expected.shape)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


def random_inputs(length, rows=2, head_dim=8, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = ((length, rows, n, head_dim) for n in (N, G, G))
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def plain(at, q, k, v):
    table = at(torch.arange(len(q))[:, None])
    return attention(ops.rotated(q, *table), ops.rotated(k, *table), v)


@pytest.mark.parametrize(("rule", "longest"), [("code", 17), ("paper", 16)])
@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_up_to_a_chunk_size_it_is_plain_attention_and_then_it_is_not(rule, longest, scale):
    dual, at = DualChunk(16, 4, rule, scale), angles(1e4, 8)
    for length in (1, 12, 13, longest):
        q, k, v = inputs = random_inputs(length)
        ours, expected = dual_attention(dual, at, *inputs), plain(at, q * scale, k * scale, v)
        grad = torch.randn_like(ours)
        found = ours, *torch.autograd.grad(ours, inputs, grad)
        wanted = expected, *torch.autograd.grad(expected, inputs, grad)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    inputs = random_inputs(longest + 1)
    assert (
        dual_attention(DualChunk(16, 4, rule), at, *inputs) - plain(at, *inputs)
    ).abs().max() > 1e-3


def test_documents_of_a_row_are_read_as_if_each_were_alone():
    dual, at, starts = DualChunk(16, 4), angles(1e4, 8), [[0, 5, 45], [0, 13, 14]]
    q, k, v = inputs = random_inputs(70)
    mixed = dual_attention(dual, at, *inputs, Stretches.of(starts, 70))
    for row, of_row in enumerate(starts):
        for begin, end in itertools.pairwise([*of_row, 70]):
            alone = [x[begin:end, row : row + 1] for x in (q, k, v)]
            torch.testing.assert_close(
                mixed[begin:end, row], dual_attention(dual, at, *alone)[:, 0], rtol=0, atol=1e-12
            )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.03)])
def test_lower_precision_agrees_with_float64(dtype, tolerance):
    dual, at, inputs = DualChunk(16, 4), angles(1e4, 8), random_inputs(100, dtype=dtype)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    ours, expected = (dual_attention(dual, at, *x) for x in (inputs, wide))
    grad = torch.randn_like(expected)
    found = ours, *torch.autograd.grad(ours, inputs, grad.to(dtype))
    wanted = expected, *torch.autograd.grad(expected, wide, grad.to(dtype).double())
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        bound = tolerance * float(b.detach().abs().max())
        torch.testing.assert_close(a.double(), b, rtol=0, atol=bound)


def test_no_query_is_kept_three_times():
    dual, at = DualChunk(512, 64), angles(1e4, 8)
    inputs = random_inputs(4096, rows=1, dtype=torch.float32)
    size = inputs[0].numel() * inputs[0].element_size()
    with LiveMemory() as memory:
        mixed = dual_attention(dual, lambda position: at(position).float(), *inputs)
    # The result, keys as they are rotated, half as many, and as much of cosines and sines.
    assert memory.live_bytes < 2.5 * size
    mixed.sum().backward()


def by_cache(dual, at, rows, lengths):
    """Results by the cache at each row's places: of prompts in one pass, then one by one."""
    tables = SimpleNamespace(at=at, inv_freq=torch.zeros(()))
    longest, new = max(lengths), len(rows[0][0]) - lengths[0]
    time = Timeline(lengths, new, torch.device("cpu"), rows[0][0].dtype, dual)
    cache, found = KVCache(time), [[] for _ in rows]

    def read(places, *qkv):
        time.begin(places)
        made = time.sequences({}, None).made_for(len(rows), places, tables, dual)
        q, k, v = (torch.cat(x, 1) for x in zip(*qkv, strict=True))
        k = ops.rotated(k, *made.rotary)
        return cache.attend(q, k, v, made.reads, made.query_rotary)

    padded = [
        [torch.nn.functional.pad(x[:n], (0,) * 7 + (longest - n,)) for x in row]
        for row, n in zip(rows, lengths, strict=True)
    ]
    mixed = read(longest, *padded)
    for row, n in enumerate(lengths):
        found[row] += mixed[:n, row].unbind()
    for step in range(new):
        mixed = read(
            1, *([x[n + step, None] for x in r] for r, n in zip(rows, lengths, strict=True))
        )
        for row in range(len(rows)):
            found[row].append(mixed[0, row])
    return [torch.stack(of_row) for of_row in found]


# In chunks of 12: below, at and past one, two and four of them, alike and each its own.
@pytest.mark.parametrize(
    "lengths", [(1, 1), (12, 12), (5, 11, 12, 13), (1, 23, 24, 25), (3, 47, 48, 49), (50, 50)]
)
@pytest.mark.parametrize("rule", ["code", "paper"])
@torch.no_grad()
def test_what_is_cached_is_read_as_in_one_pass(rule, lengths):
    dual, at, new = DualChunk(16, 4, rule, scale=1.1), angles(1e4, 8), 30
    rows = [random_inputs(n + new, rows=1) for n in lengths]
    for row, ours in zip(rows, by_cache(dual, at, rows, lengths), strict=True):
        expected = dual_attention(dual, at, *row)[:, 0]
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_what_is_cached_on_a_gpu_is_read_by_a_kernel_that_takes_masks(monkeypatch):
    gpu_kernels.install(monkeypatch, has_flash=True)
    dual, at, lengths = DualChunk(16, 4), angles(1e4, 8), (3, 20, 35)
    rows = [random_inputs(n + 9, rows=1) for n in lengths]
    for row, ours in zip(rows, by_cache(dual, at, rows, lengths), strict=True):
        expected = dual_attention(dual, at, *row)[:, 0]
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("has_flash", [True, False])
def test_the_branches_for_gpus_are_attention_in_chunks(monkeypatch, has_flash):
    dual, at, inputs = DualChunk(16, 4), angles(1e4, 8), random_inputs(70)
    stretches = Stretches.of([[0, 5, 45], [0]], 70)
    expected = dual_attention(dual, at, *inputs, stretches)
    grad = torch.randn_like(expected)
    wanted = expected, *torch.autograd.grad(expected, inputs, grad)
    gpu_kernels.install(monkeypatch, has_flash)
    ours = dual_attention(dual, at, *inputs, stretches)
    for a, b in zip((ours, *torch.autograd.grad(ours, inputs, grad)), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("places", [20, 24, 25, 96])
def test_the_length_factor_of_a_whole_prompt_is_one_until_the_trained_length(places):
    expected = max(1.0, 0.1 * math.log(places / 24) + 1)
    assert DualChunk(24, 8).for_prompt(places, 24).scale == expected
    assert (expected > 1) == (places > 24)
