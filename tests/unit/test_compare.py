"""The divergence of tiled logits is that of whole ones in float64, derivatives included."""

import golden
import pytest
import torch
from live_memory import LiveMemory
from test_logits import Alone, near

from megatron_qwen3.model.divergence import against, compare
from megatron_qwen3.model.logits import Logits
from megatron_qwen3.model.tiles import TILE_BYTES
from megatron_qwen3.training.batch import TokenBatch

S, B, H, G, V = 7, 3, 16, 24, 300
BETAS = pytest.mark.parametrize("beta", [0.0, 0.3, 0.9, 1.0])
# All logits in one tile; several rows in one; a row alone; less than a row.
TILES = pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 8400, 2048, 256])


def inputs(seed=5, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    shapes = (S, B, H), (V, H), (S, B, G), (V, G)
    hidden, weight, teacher, matrix = (torch.randn(x, generator=random) / 2 for x in shapes)
    if dtype == torch.float64:  # in float32 the sum of such a logit is not known better than 1e-5
        hidden[0, 0], weight[7] = 4.0, 4.0  # the logit of token 7 is 256 there: one sure token
        teacher[0, :2], matrix[7] = 4.0, 2.0
    labels = torch.randint(V, (S, B), generator=random)
    labels[1] = (teacher @ matrix.t()).argmax(-1)[1]
    given = [x.to(dtype) for x in (hidden, weight, teacher, matrix)]
    return [x.requires_grad_() for x in given[:2]], given[2:], labels


def compared(student, teacher, labels, beta, tile_bytes=TILE_BYTES, shared=V, temperature=1.0):
    logits = [
        Logits(*pair, Alone(), tile_bytes).tempered(temperature) for pair in (student, teacher)
    ]
    return compare(*logits, labels, beta, shared)


def by_hand(student, teacher, labels, beta, shared=V, temperature=1.0):
    """The same by whole softmaxes in float64, and the leaves that autograd follows."""
    exact = [x.detach().double().requires_grad_() for x in student]
    logits = [h @ w.t() / temperature for h, w in (exact, [x.double() for x in teacher])]
    log_q, log_p = (x[..., :shared].log_softmax(-1) for x in logits)
    q, p = log_q.exp(), log_p.exp()
    if beta == 0:
        divergence = (p * (log_p - log_q)).sum(-1)
    elif beta == 1:
        divergence = (q * (log_q - log_p)).sum(-1)
    else:
        log_m = (beta * p + (1 - beta) * q).clamp_min(1e-300).log()
        divergence = beta * (p * (log_p - log_m)).sum(-1)
        divergence = divergence + (1 - beta) * (q * (log_q - log_m)).sum(-1)
    of_labels = [x.gather(-1, labels.unsqueeze(-1)).squeeze(-1) for x in (log_q, log_p)]
    entropy, is_best = -(q * log_q).sum(-1), (log_p.argmax(-1) == labels).double()
    return exact, (divergence, *of_labels, entropy, is_best)


def assert_same(ours, theirs, leaves, exact, tolerance):
    for mine, true in zip(ours, theirs, strict=True):
        near(mine.detach(), true.detach(), min(tolerance, 1e-6))
    weights = torch.rand(S, B, generator=torch.Generator().manual_seed(2))
    mine = torch.autograd.grad((ours[0] * weights).sum(), leaves)
    true = torch.autograd.grad((theirs[0] * weights).sum(), exact)
    for one, other in zip(mine, true, strict=True):
        near(one, other, tolerance)


DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-11)], ids=["fp32", "fp64"]
)


@BETAS
@TILES
@DTYPES
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_values_and_gradients_are_those_of_whole_logits(
    beta, tile_bytes, temperature, dtype, tolerance
):
    student, teacher, labels = inputs(dtype=dtype)
    ours = compared(student, teacher, labels, beta, tile_bytes, temperature=temperature)
    exact, theirs = by_hand(student, teacher, labels, beta, temperature=temperature)
    assert theirs[-1].sum() >= B  # some labels are the teacher's best
    assert_same(ours, theirs, student, exact, tolerance)


@BETAS
def test_in_bfloat16_it_is_as_near_as_bfloat16_is(beta):
    student, teacher, labels = inputs(dtype=torch.bfloat16)
    ours = compared(student, teacher, labels, beta, 2048)
    exact, theirs = by_hand(student, teacher, labels, beta)
    for mine, true in zip(ours[:4], theirs[:4], strict=True):
        assert mine.dtype == torch.float32
        near(mine.detach(), true.detach(), 2e-2)
    found = torch.autograd.grad(ours[0].sum(), student)
    for mine, true in zip(found, torch.autograd.grad(theirs[0].sum(), exact), strict=True):
        assert (mine.double() - true).norm() < 2e-2 * true.norm()


@BETAS
@pytest.mark.parametrize("shared", [V - 1, 130])
@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 2048])
def test_rows_of_padding_have_no_part_in_it(beta, shared, tile_bytes):
    """Whatever stands in them, on either side: both softmaxes are over tokens that both know."""
    student, teacher, labels = inputs(dtype=torch.float64)
    labels %= shared
    teacher[1][shared:] = 50.0
    ours = compared(student, teacher, labels, beta, tile_bytes, shared)
    exact, theirs = by_hand(student, teacher, labels, beta, shared)
    assert_same(ours, theirs, student, exact, 1e-11)
    again = compared(student, teacher, labels, beta, tile_bytes, shared)
    (of_weight,) = torch.autograd.grad(again.divergence.sum(), student[1])
    assert not of_weight[shared:].any()


@BETAS
def test_derivatives_are_those_of_small_steps(beta):
    random = torch.Generator().manual_seed(1)
    double = {"generator": random, "dtype": torch.float64}
    hidden = torch.randn(3, 1, 4, **double, requires_grad=True)
    weight = torch.randn(40, 4, **double, requires_grad=True)
    teacher = torch.randn(3, 1, 5, **double), torch.randn(40, 5, **double)
    labels = torch.zeros(3, 1, dtype=torch.int64)
    assert torch.autograd.gradcheck(
        lambda *student: compared(student, teacher, labels, beta, 160, 37).divergence,
        (hidden, weight),
    )


@BETAS
@TILES
def test_a_teacher_that_is_the_student_has_loss_and_gradient_of_exactly_0(beta, tile_bytes):
    student, _, labels = inputs()
    same = [x.detach().clone() for x in student]
    found = compared(student, same, labels, beta, tile_bytes)
    near_0 = 0 if beta in (0, 1) else 2e-7  # log (β p + (1 - β) p) is log p but for rounding
    assert found.divergence.abs().max() <= near_0
    for gradient in torch.autograd.grad(found.divergence.sum(), student):
        assert gradient.abs().max() <= 50 * near_0


@BETAS
def test_another_teacher_has_another_gradient(beta):
    student, teacher, labels = inputs()
    _, other, _ = inputs(seed=6)
    gradients = [
        torch.autograd.grad(compared(student, one, labels, beta).divergence.sum(), student)[1]
        for one in (teacher, other)
    ]
    assert (gradients[0] - gradients[1]).norm() > 0.1 * gradients[0].norm()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_two_logits_of_a_tile_and_their_like_are_all_that_lives(beta):
    positions, width, columns, tile = 2048, 8, 2048, 1 << 18
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, 1, width, generator=random, requires_grad=True)
    weight = torch.randn(columns, width, generator=random, requires_grad=True)
    teacher = hidden.detach().flip(0).contiguous(), weight.detach().flip(0).contiguous()
    labels = torch.zeros(positions, 1, dtype=torch.int64)
    with LiveMemory() as memory:
        compared((hidden, weight), teacher, labels, beta, tile).divergence.mean().backward()
    narrow = 4 * (60 * positions + 2 * width * (positions + columns))
    assert memory.peak_bytes < 5 * tile + narrow < positions * columns * 4 / 8


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_a_beta_that_is_none_is_refused(beta):
    with pytest.raises(ValueError, match="beta = .*; valid: 0"):
        compared(*inputs(), beta)


@pytest.mark.parametrize("case", golden.cases("rl_losses.json", "gkd_jsd"))
@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 256])
def test_loss_and_gradient_through_the_head_are_those_of_trls_gkd(case, tile_bytes, monkeypatch):
    """Logits themselves as hidden states, and the unit matrix to make logits of them."""
    monkeypatch.setattr(Logits, "tile_bytes", tile_bytes)
    given, hyper = case["inputs"], case["hyper"]
    logits, teacher = (
        torch.tensor(given[name], dtype=torch.float64)
        for name in ("student_logits", "teacher_logits")
    )
    logits.requires_grad_()
    labels = torch.tensor(given["labels"])
    is_trained, size = labels != -100, logits.shape[-1]
    unit = torch.eye(size, dtype=torch.float64)
    head = against(unit, size, hyper["beta"], hyper["temperature"], size)
    batch = TokenBatch(
        labels.clamp_min(0),
        labels.clamp_min(0),
        is_trained.float(),
        None,
        None,
        {"teacher_hidden": teacher},
    )
    found = head.compute(Logits(logits.transpose(0, 1), unit, Alone()), batch)
    count = hyper["num_items_in_batch"] or is_trained.sum()
    loss = torch.where(is_trained, found["divergence"], 0.0).sum() / count
    assert loss.item() == pytest.approx(case["outputs"]["loss"], abs=case["tol"])
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = torch.tensor(case["outputs"]["grad_student_logits"], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=case["tol"])
