"""Divergences of student and teacher: pure functions of log-probabilities, one value per position.

    loss_BS = forward_kl(student_BSV, teacher_BSV)
    student_BSN, teacher_BSN = with_rest(log_q_BSK), with_rest(log_p_BSK)    # N = K + 1 bins
    loss_BS = forward_kl(student_BSN, teacher_BSN)

Everything is computed in the dtype given, without reduction over positions. Where only K ids of the
vocabulary are known, all others are one more bin, so that both sides are distributions again: every
divergence of the bins is at least 0, at most that of the whole vocabulary, and 0 only where the
bins agree. Without that bin a sum over K ids can fall below 0, and a student lowers it by giving
the K ids more mass than the teacher does, or, in the reverse one, by taking mass from them.

Legend: p the teacher's probabilities, q the student's; B rows, S positions, V vocabulary, K ids of
each position, N bins.
"""

import math

import torch
from torch import Tensor

_EACH = "valid: k2, k3"
_NO_MASS = -1e4  # a log-probability whose exp is 0 in every dtype, and whose differences are finite


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p - log q) over the last dimension of log-probabilities.

    An entry with p = 0 counts nothing, whatever q it has.
    """
    return _mean_under(teacher, teacher - student)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ q (log q - log p) over the last dimension of log-probabilities."""
    return _mean_under(student, student - teacher)


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """beta KL(p ‖ m) + (1 - beta) KL(q ‖ m), m = beta p + (1 - beta) q (GKD, 2306.13649, eq. 1).

    The formula goes to 0 at both ends; as in GKD, beta = 0 is the forward KL and beta = 1 the
    reverse one instead. ValueError for a beta outside of [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta = {beta}; valid: 0 (forward KL) to 1 (reverse KL)")
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    # Where both are 0, the slope of log (0 + 0) would be NaN, and 0 · NaN spoils the gradient.
    is_none = torch.isneginf(student) & torch.isneginf(teacher)
    student, teacher = (x.masked_fill(is_none, _NO_MASS) for x in (student, teacher))
    mixture = torch.logaddexp(student + math.log1p(-beta), teacher + math.log(beta))
    of_teacher = _mean_under(teacher, teacher - mixture)
    return beta * of_teacher + (1 - beta) * _mean_under(student, student - mixture)


def with_rest(log_probs: Tensor, log_rest: Tensor | None = None) -> Tensor:
    """[…, K] log-probabilities of distinct ids, and that of all other ids beside them: […, K + 1].

    log_rest: […], where it is known; else it is `rest_of(log_probs)`.
    """
    rest = rest_of(log_probs) if log_rest is None else log_rest
    return torch.cat([log_probs, rest.unsqueeze(-1)], -1)


def rest_of(log_probs: Tensor) -> Tensor:
    """log (1 - Σ exp) over the last dimension: the probability of all other ids together.

    A rest r is known to epsilon / r only, since the sum is rounded; the logits give it
    better (`Logits.scores`). Of a sum within rounding of 1, or above, the rest is the dtype's
    epsilon, with the slope that belongs to it, -exp / epsilon.
    """
    mass = log_probs.exp().sum(-1)
    most = 1 - torch.finfo(log_probs.dtype).eps
    return torch.log1p(-(mass + (mass.clamp_max(most) - mass).detach()))  # the value alone is cut


def top_k_without_rest(
    student: Tensor, teacher: Tensor, least_log_prob: float | None = None
) -> Tensor:
    """Σ p (log p - log q) over the teacher's K ids alone, which may be negative; for comparisons.

    As in verl before it clamps at 0. least_log_prob: a floor for both sides.
    """
    if least_log_prob is not None:
        student, teacher = (x.clamp_min(least_log_prob) for x in (student, teacher))
    return forward_kl(student, teacher)


def sampled_kl(student: Tensor, teacher: Tensor, estimator: str) -> Tensor:
    """An estimate of KL(q ‖ p) from log-probabilities of a token that the student sampled.

    With d = log p - log q: k2 is d² / 2 and k3 is exp(d) - 1 - d (Schulman, 'Approximating KL
    divergence', 2020). ValueError for k1, -d: as a loss it does not train towards the teacher.
    """
    d = teacher - student
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return torch.expm1(d) - d
    if estimator == "k1":
        raise ValueError(
            "k1, log q - log p of the sampled token, is no loss: the teacher is not in its "
            f"derivative; {_EACH}"
        )
    raise ValueError(f"{estimator} is no estimator of a divergence; {_EACH}")


def _mean_under(log_weights: Tensor, x: Tensor) -> Tensor:
    """Σ exp(log_weights) · x over the last dimension; x counts nothing where its weight is 0."""
    weights = log_weights.exp()
    return (weights * torch.where(weights > 0, x, 0.0)).sum(-1)
