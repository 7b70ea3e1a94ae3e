"""Divergences against their definitions, and the traps of losses over a teacher's top k.

Legend: p the teacher's probabilities, q the student's; V vocabulary, K ids.
"""

import math

import pytest
import torch
from torch.autograd import gradcheck

from megatron_qwen3.posttrain.teachers.divergences import (
    forward_kl,
    jensen_shannon,
    rest_of,
    reverse_kl,
    sampled_kl,
    top_k_without_rest,
    with_rest,
)

V, K, POSITIONS = 13, 4, 50


def logits(seed, scale=3.0):
    random = torch.Generator().manual_seed(seed)
    return scale * torch.randn(POSITIONS, V, generator=random, dtype=torch.float64)


def top_of(teacher_logits):
    """The teacher's K ids and their log p."""
    return teacher_logits.log_softmax(-1).topk(K)


def merged(log_probs, ids):
    """All V log-probabilities with those outside of `ids` added up, written out."""
    p = log_probs.exp()
    is_kept = torch.zeros_like(p, dtype=torch.bool).scatter(-1, ids, True)
    others = torch.where(is_kept, 0.0, p).sum(-1, keepdim=True)
    return torch.cat([p.gather(-1, ids), others], -1)


@pytest.mark.parametrize("divergence", [forward_kl, reverse_kl])
def test_with_a_bin_of_the_rest_it_is_the_divergence_of_the_merged_distributions(divergence):
    student, teacher = (logits(seed).log_softmax(-1) for seed in (1, 2))
    log_p, ids = top_of(teacher)
    got = divergence(with_rest(student.gather(-1, ids)), with_rest(log_p))
    q, p = merged(student, ids), merged(teacher, ids)
    a, b = (p, q) if divergence is forward_kl else (q, p)
    torch.testing.assert_close(got, (a * (a / b).log()).sum(-1), rtol=1e-12, atol=1e-14)
    assert (got > 0).all() and (got <= divergence(student, teacher) + 1e-12).all()
    same = with_rest(log_p)
    assert divergence(same, same).abs().max() < 1e-15


def test_its_gradient_in_the_logits_is_the_difference_of_the_bins():
    student_logits, teacher = logits(3).requires_grad_(), logits(4).log_softmax(-1)
    log_p, ids = top_of(teacher)
    student = student_logits.log_softmax(-1)
    loss = forward_kl(with_rest(student.gather(-1, ids)), with_rest(log_p)).sum()
    (got,) = torch.autograd.grad(loss, student_logits)
    torch.testing.assert_close(got, by_hand(student, log_p, ids), rtol=1e-11, atol=1e-14)


def by_hand(student, log_p, ids):
    """d/d logit of an id is q - p; of another token q (1 - t / s), with t and s of the rest."""
    q, p = student.detach().exp(), log_p.exp()
    is_kept = torch.zeros_like(q, dtype=torch.bool).scatter(-1, ids, True)
    s = torch.where(is_kept, 0.0, q).sum(-1, keepdim=True)
    t = 1 - p.sum(-1, keepdim=True)
    return torch.where(is_kept, q, q * (1 - t / s)).scatter_add(-1, ids, -p)


def sure(student_gap, teacher_gap):
    """Logits of both, those of the first K ids above all others by a gap each."""
    above = torch.cat([torch.ones(K), torch.zeros(V - K)]).double()
    student_logits = (logits(5, 0.5) + student_gap * above).requires_grad_()
    return student_logits, (logits(6, 0.5) + teacher_gap * above).log_softmax(-1)


def gradient_of(loss, x):
    assert loss.isfinite().all() and (loss > -1e-14).all()
    return torch.autograd.grad(loss.sum(), x)[0]


GAPS = [5.0, 15.0, 28.0, 60.0]  # of which the rest is 1e-2 to 1e-26


@pytest.mark.parametrize("student_gap", GAPS)
@pytest.mark.parametrize("teacher_gap", GAPS)
def test_where_the_rest_is_known_the_gradient_is_exact_however_little_is_left(
    student_gap, teacher_gap
):
    x, teacher = sure(student_gap, teacher_gap)
    student = x.log_softmax(-1)
    bins = [with_rest(y[:, :K], y[:, K:].logsumexp(-1)) for y in (student, teacher)]
    got, q, p = gradient_of(forward_kl(*bins), x), student.detach().exp(), teacher.exp()
    torch.testing.assert_close(got[:, :K], (q - p)[:, :K], rtol=1e-9, atol=1e-14)
    # All others together are pulled by the difference of their probabilities on both sides.
    left = (q - p)[:, K:].sum(-1)
    torch.testing.assert_close(got[:, K:].sum(-1), left, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("student_gap", GAPS)
@pytest.mark.parametrize("teacher_gap", GAPS)
def test_where_the_rest_is_what_the_ids_leave_the_gradient_errs_by_the_rounding_of_their_sum(
    student_gap, teacher_gap
):
    x, teacher = sure(student_gap, teacher_gap)
    student = x.log_softmax(-1)
    got = gradient_of(forward_kl(with_rest(student[:, :K]), with_rest(teacher[:, :K])), x)
    q, p = student.detach().exp(), teacher.exp()
    s, t = (y[:, K:].sum(-1, keepdim=True) for y in (q, p))
    error = (t * (4e-16 / s).clamp_max(1)).max().item() + 1e-14  # t / s is off by that share of it
    torch.testing.assert_close(got[:, :K], (q - p)[:, :K], rtol=1e-9, atol=error)
    torch.testing.assert_close(got[:, K:].sum(-1, keepdim=True), s - t, rtol=1e-9, atol=error)


def test_a_rest_lost_in_rounding_is_one_epsilon_and_its_slope_stays():
    log_p = torch.tensor([0.0, -800.0], dtype=torch.float64, requires_grad=True)
    rest = rest_of(log_p)
    epsilon = torch.finfo(torch.float64).eps
    assert rest.exp().item() == pytest.approx(epsilon)
    (slope,) = torch.autograd.grad(rest, log_p)
    assert slope.tolist() == pytest.approx([-1 / epsilon, 0.0])
    nearly_all = torch.full((1,), -50.0, dtype=torch.float64)
    assert rest_of(nearly_all).item() == pytest.approx(-nearly_all.exp().item(), rel=1e-12)


def test_a_token_that_the_teacher_rules_out_counts_nothing_in_the_forward_kl():
    student_logits = logits(7).requires_grad_()
    teacher_logits = logits(8)
    teacher_logits[:, 3] = -torch.inf
    student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    loss = forward_kl(student, teacher)
    left = [v for v in range(V) if v != 3]
    expected = (teacher[:, left].exp() * (teacher - student)[:, left]).sum(-1)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), student_logits)
    torch.testing.assert_close(gradient, student.exp() - teacher.exp(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_token_that_both_rule_out_changes_neither_the_loss_nor_the_gradient(beta, dtype):
    """As padding of the vocabulary, whose logits are -inf on both sides."""
    padding = torch.full((POSITIONS, 3), -math.inf)
    found = []
    for more in (padding[:, :0], padding):
        student, teacher = (
            torch.cat([logits(seed).to(dtype), more.to(dtype)], -1).requires_grad_()
            for seed in (1, 2)
        )
        parts = student.log_softmax(-1), teacher.log_softmax(-1)
        loss = jensen_shannon(*parts, beta)
        gradients = torch.autograd.grad(loss.sum(), [student, teacher])
        found.append([loss.detach(), *(x[:, :V] for x in gradients)])
        assert all(torch.isfinite(x).all() and not x[:, V:].any() for x in gradients)
    torch.testing.assert_close(*found)


def test_the_ends_of_jensen_shannon_are_both_kls_and_its_middle_is_symmetric():
    a, b = (logits(seed).log_softmax(-1) for seed in (9, 10))
    assert jensen_shannon(a, b, 0.0).equal(forward_kl(a, b))
    assert jensen_shannon(a, b, 1.0).equal(reverse_kl(a, b))
    torch.testing.assert_close(jensen_shannon(a, b, 0.5), jensen_shannon(b, a, 0.5))
    m = (0.3 * b.exp() + 0.7 * a.exp()).log()
    expected = 0.3 * (b.exp() * (b - m)).sum(-1) + 0.7 * (a.exp() * (a - m)).sum(-1)
    torch.testing.assert_close(jensen_shannon(a, b, 0.3), expected, rtol=1e-12, atol=0)
    for beta in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="beta = .*; valid: 0"):
            jensen_shannon(a, b, beta)


@pytest.mark.parametrize("beta", [0.0, 0.2, 1.0])
def test_gradients_are_those_of_finite_differences(beta):
    teacher = logits(11)[:3].log_softmax(-1)
    log_p, ids = top_of(teacher)

    def whole(x):
        return jensen_shannon(x.log_softmax(-1), teacher, beta)

    def bins(x):
        student = with_rest(x.log_softmax(-1).gather(-1, ids))
        return jensen_shannon(student, with_rest(log_p), beta)

    x = logits(12)[:3].requires_grad_()
    assert gradcheck(whole, x) and gradcheck(bins, x)


def trained_on(loss, student_logits, steps=200):
    """Mass on the teacher's top k: the student's before and after 200 steps, and the teacher's."""
    log_p, ids = top_of(logits(13, 1.5).log_softmax(-1))
    x = student_logits.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    masses = []
    for _ in range(steps + 1):
        student = x.log_softmax(-1).gather(-1, ids)
        masses.append(student.detach().exp().sum(-1).mean().item())
        optimizer.zero_grad()
        loss(student, log_p).mean().backward()
        optimizer.step()
    return masses[0], masses[-1], log_p.exp().sum(-1).mean().item()


def with_bins(divergence):
    return lambda student, teacher: divergence(with_rest(student), with_rest(teacher))


def test_a_student_flees_the_teachers_top_k_in_reverse_and_does_not_with_the_rest():
    """Even one that begins near its teacher: q (log q - log p) is least at q = p / e."""
    near_teacher = logits(13, 1.5) + logits(14, 0.3)
    first, last, teachers = trained_on(reverse_kl, near_teacher)
    assert last == pytest.approx(teachers / math.e, abs=0.01) and last < first / 2
    first, last, teachers = trained_on(with_bins(reverse_kl), near_teacher)
    assert last > first - 0.02 and last == pytest.approx(teachers, abs=0.01)
    _, last, _ = trained_on(with_bins(reverse_kl), logits(14, 1.5))
    assert last == pytest.approx(teachers, abs=0.01)


def test_a_student_crowds_the_teachers_top_k_and_does_not_with_the_rest():
    """Without the rest the forward sum falls below 0, where the student goes beyond the teacher."""
    begun = logits(14, 1.5)
    _, last, teachers = trained_on(top_k_without_rest, begun)
    assert last > teachers + 0.1
    _, last, teachers = trained_on(with_bins(forward_kl), begun)
    assert last == pytest.approx(teachers, abs=0.01)


def test_k1_is_refused_as_a_loss_and_others_pull_towards_the_teacher():
    student = torch.tensor([-1.0, -3.0], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([-2.0, -1.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="the teacher is not in its derivative; valid: k2, k3"):
        sampled_kl(student, teacher, "k1")
    with pytest.raises(ValueError, match="k4 is no estimator"):
        sampled_kl(student, teacher, "k4")
    slopes = {}
    for name in ("k2", "k3"):
        values = sampled_kl(student, teacher, name)
        (slopes[name],) = torch.autograd.grad(values.sum(), student)
        assert (values > 0).all()
    d = (teacher - student).detach()
    torch.testing.assert_close(slopes["k2"], -d)
    torch.testing.assert_close(slopes["k3"], 1 - d.exp())
