"""The probability that some ids leave to all others: value and slope are exact, also near 0."""

from types import SimpleNamespace

import pytest
import torch
from live_memory import LiveMemory
from test_logits import Alone, Products, near

from megatron_qwen3.model.distributions import at_ids_and_label
from megatron_qwen3.model.linear import Products as Linears
from megatron_qwen3.model.logits import Logits
from megatron_qwen3.model.tiles import LEAST_LOG_REST, TILE_BYTES
from megatron_qwen3.posttrain.teachers.divergences import forward_kl, with_rest

S, B, H, V, K = 7, 3, 16, 300, 5
TILES = pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 8400, 1024, 256])


def inputs(scale=1.0):
    random = torch.Generator().manual_seed(6)
    hidden = scale * torch.randn(S, B, H, generator=random)
    weight = torch.randn(V, H, generator=random)
    labels = torch.randint(V, (S, B, 1), generator=random)
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def whole(hidden, weight):
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    return exact, (exact[0] @ exact[1].t()).log_softmax(-1)


def rest_by_hand(log_p, ids):
    return log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)


@TILES
@pytest.mark.parametrize("with_entropy", [False, True])
def test_the_rest_and_its_gradient_are_those_of_whole_logits(tile_bytes, with_entropy):
    hidden, weight, labels = inputs()
    exact, log_p = whole(hidden, weight)
    ids = log_p.detach().topk(K).indices
    labels[0] = ids[0, :, :1]  # a label may be one of the ids
    asked = torch.cat([ids, labels], -1)
    scores = Logits(hidden, weight, Alone(), tile_bytes).scores(asked, with_entropy, rest_of=K)
    others = rest_by_hand(log_p, ids)
    near(scores.log_rest.detach(), others.detach(), 1e-6)
    g = torch.randn(S, B, K + 3, generator=torch.Generator().manual_seed(1))
    ours = (scores.log_p * g[..., : K + 1]).sum() + (scores.log_rest * g[..., -2]).sum()
    theirs = (log_p.gather(-1, asked) * g[..., : K + 1]).sum() + (others * g[..., -2]).sum()
    if with_entropy:
        ours = ours + (scores.entropy * g[..., -1]).sum()
        theirs = theirs - ((log_p.exp() * log_p).sum(-1) * g[..., -1]).sum()
    for mine, true in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(theirs, exact), strict=True
    ):
        near(mine, true, 2e-6)


def test_derivatives_of_the_rest_are_those_of_small_steps():
    random = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 1, 4, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(40, 4, generator=random, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[[3, 7, 3]], [[0, 39, 2]], [[39, 17, 17]]])

    def scores(hidden, weight):
        found = Logits(hidden, weight, Alone(), 160).scores(ids, with_entropy=True, rest_of=2)
        return tuple(found)

    assert torch.autograd.gradcheck(scores, (hidden, weight))


@TILES
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_a_kl_with_the_rest_has_the_gradient_of_float64_where_both_are_sure(tile_bytes, scale):
    """At the larger scale some ids take all but 1e-17 of the mass: 1 minus their sum is 0."""
    hidden, weight, _ = inputs(scale)
    teacher = (hidden * 1.01 + 0.05 * torch.ones(H)).detach()
    best = Logits(teacher, weight.detach(), Alone(), tile_bytes).top_k(K)
    scores = Logits(hidden, weight, Alone(), tile_bytes).scores(best.ids, rest_of=K)
    loss = forward_kl(
        with_rest(scores.log_p, scores.log_rest), with_rest(best.log_p, best.log_rest)
    )
    exact, log_q = whole(hidden, weight)
    log_p = (teacher.double() @ exact[1].detach().t()).log_softmax(-1)
    expected = forward_kl(
        with_rest(log_q.gather(-1, best.ids), rest_by_hand(log_q, best.ids)),
        with_rest(log_p.gather(-1, best.ids), rest_by_hand(log_p, best.ids)),
    )
    assert scale == 1.0 or best.log_rest.min() < -40
    log_p_error = 2e-5 * scale  # of float32 logits
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=log_p_error)
    for mine, true in zip(
        torch.autograd.grad(loss.sum(), (hidden, weight)),
        torch.autograd.grad(expected.sum(), exact),
        strict=True,
    ):
        near(mine, true, 1e-5 * scale)


@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 1024])
@pytest.mark.parametrize("k", [1, K, V])
def test_what_the_most_probable_ids_leave_is_the_sum_of_all_others(k, tile_bytes):
    hidden, weight, _ = inputs()
    log_rest = Logits(hidden, weight, Alone(), tile_bytes).top_k(k).log_rest
    _, log_p = whole(hidden, weight)
    others = log_p.detach().sort(-1).values[..., : V - k].logsumexp(-1)
    near(log_rest, others.clamp_min(LEAST_LOG_REST), 1e-6)


@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 256])
def test_where_nothing_is_left_the_rest_has_its_least_value_and_no_slope(tile_bytes):
    hidden, weight, _ = inputs()
    ids = torch.arange(V).expand(S, B, V)
    log_rest = Logits(hidden, weight, Alone(), tile_bytes).scores(ids, rest_of=V).log_rest
    assert log_rest.eq(LEAST_LOG_REST).all()
    (gradient,) = torch.autograd.grad(log_rest.sum(), hidden)
    assert gradient.isfinite().all()


@TILES
def test_an_id_that_stands_twice_where_nothing_has_a_weight_harms_no_gradient(tile_bytes):
    hidden, weight, _ = inputs()
    with torch.no_grad():
        hidden[3] = 4 * weight[0]  # padding, of which the model is sure that it is token 0
    ids = Logits(hidden, weight, Alone(), tile_bytes).top_k(K).ids
    place = torch.arange(S) == 3
    twice = torch.where(place[:, None, None], 0, ids)
    grads = []
    for asked in (ids, twice):
        scores = Logits(hidden, weight, Alone(), tile_bytes).scores(asked, rest_of=K)
        loss = torch.where(place[:, None], 0.0, scores.log_rest + scores.log_p.sum(-1)).sum()
        grads.append(torch.autograd.grad(loss, (hidden, weight)))
    for mine, expected in zip(*grads, strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 1024])
def test_tempered_logits_are_divided_and_so_are_their_gradients(tile_bytes):
    hidden, weight, labels = inputs()
    ours = Logits(hidden, weight, Alone(), tile_bytes).tempered(2.5).scores(labels).log_p
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    theirs = ((exact[0] @ exact[1].t()) / 2.5).log_softmax(-1).gather(-1, labels)
    near(ours.detach(), theirs.detach(), 1e-6)
    for mine, true in zip(
        torch.autograd.grad(ours.sum(), (hidden, weight)),
        torch.autograd.grad(theirs.sum(), exact),
        strict=True,
    ):
        near(mine, true, 2e-6)


@pytest.mark.parametrize("temperature", [0.6, 1.7])
@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 1024])
def test_bfloat16_logits_are_divided_and_not_what_they_are_made_of(tile_bytes, temperature):
    """As vLLM's sampler does: the product is in bf16, all after it in float32."""
    *given, labels = inputs()
    hidden, weight = (x.detach().to(torch.bfloat16).requires_grad_() for x in given)
    logits = Logits(hidden, weight, Alone(), tile_bytes).tempered(temperature)
    rounded = (hidden @ weight.t()).detach().double().requires_grad_()
    log_p = (rounded / temperature).log_softmax(-1)
    best = logits.top_k(K)
    asked = torch.cat([best.ids, labels], -1)
    scores = logits.scores(asked, with_entropy=True, rest_of=K)
    near(scores.log_p.detach(), log_p.gather(-1, asked).detach(), 1e-6)
    near(scores.entropy.detach(), -(log_p.exp() * log_p).sum(-1).detach(), 1e-6)
    near(scores.log_z.detach(), (rounded / temperature).logsumexp(-1).detach(), 1e-6)
    near(scores.log_rest.detach(), rest_by_hand(log_p, best.ids).detach(), 1e-6)
    near(best.log_p, log_p.topk(K).values.detach(), 1e-6)
    for plain in (logits.whole(), logits.of_places(None, Linears())[None]):
        assert plain.dtype == torch.float32
        near(plain.detach(), (rounded / temperature).detach()[-len(plain) :], 1e-6)
    scores.log_p[..., -1].sum().backward()
    log_p.gather(-1, labels).sum().backward()
    of_logits = rounded.grad.flatten(0, 1)
    for mine, exact in (
        (hidden.grad.flatten(0, 1), of_logits @ weight.detach().double()),
        (weight.grad, of_logits.t() @ hidden.detach().double().flatten(0, 1)),
    ):
        # The logits' gradient is rounded to bf16 once, and so is what is made of it.
        assert ((mine.double() - exact).norm() / exact.norm()).item() < 2**-8
    assert hidden.grad.dtype == torch.bfloat16


def soft_targets(hidden, weight, ids, tile_bytes):
    """Soft targets and labels of `at_ids_and_label`, forward and backward."""
    positions = len(hidden)
    rows = torch.zeros(1, positions, dtype=torch.int64)
    batch = SimpleNamespace(labels_BS=rows, extra={"ids": ids[None]})
    outputs = at_ids_and_label(K).compute(Logits(hidden, weight, Alone(), tile_bytes), batch)
    even = torch.full((1, positions, K + 1), 1 / (K + 1)).log()
    kl = forward_kl(with_rest(outputs["log_probs"], outputs["log_rest"]), even)
    (kl - outputs["log_prob"]).sum().backward()


def test_soft_targets_and_labels_take_one_pass_over_the_logits():
    for tile_bytes, passes in ((TILE_BYTES, 3), (1024, 4)):  # what fits is kept for backward
        hidden = torch.randn(21, 1, H, requires_grad=True)
        weight = torch.randn(V, H, requires_grad=True)
        with Products() as products:
            soft_targets(hidden, weight, torch.arange(K).expand(21, K), tile_bytes)
        assert products.multiplications == passes * 21 * V * H


def test_memory_of_soft_targets_grows_by_their_ids_and_not_by_the_vocabulary():
    columns, tile_bytes, peaks = 1024, 1 << 19, []
    for positions in (512, 1024, 2048):
        hidden = torch.randn(positions, 1, 8, requires_grad=True)
        weight = torch.randn(columns, 8, requires_grad=True)
        ids = torch.arange(K).expand(positions, K).contiguous()
        with LiveMemory() as memory:
            soft_targets(hidden, weight, ids, tile_bytes)
        peaks.append(memory.peak_bytes - 4 * hidden.numel())
    # Of each position: some twenty numbers, and of each id as many. Its logits are 4 KiB.
    per_position = 160 + 100 * (K + 1)
    assert peaks[1] - peaks[0] <= 512 * per_position
    assert peaks[2] - peaks[1] <= 1024 * per_position
