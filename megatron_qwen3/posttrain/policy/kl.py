"""Estimates of KL(policy ‖ reference) from the log-probability of a token that the policy sampled.

    kl_BS = estimate(log_prob_BS, reference_BS, "k3", limit=20.0, most=10.0)

With d = log reference - log policy: k1 is -d, k2 d² / 2, k3 exp(d) - 1 - d, abs |d| (Schulman,
'Approximating KL divergence', 2020). As losses they differ by their derivatives: on average over
the policy's own samples that of k2 is the divergence's, that of k3 the reverse divergence's, and
that of k1 is 0. 'k1+' and 'k3+' have the value of k1 and k3 and the derivative of k2.
"""

import torch
from torch import Tensor

from megatron_qwen3.posttrain.teachers.divergences import sampled_kl


def estimate(
    log_prob: Tensor, reference: Tensor, estimator: str, limit: float = 0.0, most: float = 0.0
) -> Tensor:
    """The estimate of each token, in the dtype given.

    limit: d is clamped to it within k3; most: k3 itself is clamped to it, both without derivative
    beyond; 0: no clamp. verl has 20 and 10 for k3 (its low_var_kl), TRL has neither.
    ValueError for another estimator.
    """
    d = reference - log_prob
    if estimator == "k1":
        return -d
    if estimator == "abs":
        return d.abs()
    if estimator == "k2":
        return sampled_kl(log_prob, reference, "k2")
    if estimator == "k3":
        d = d.clamp(-limit, limit) if limit else d
        k3 = sampled_kl(torch.zeros_like(d), d, "k3")
        return k3.clamp_max(most) if most else k3
    if estimator in ("k1+", "k3+"):
        value = estimate(log_prob, reference, estimator[:-1], limit, most).detach()
        slope = sampled_kl(log_prob, reference, "k2")
        return value + (slope - slope.detach())
    raise ValueError(f"{estimator} is no estimator; valid: k1, k2, k3, abs, k1+, k3+")


def sums_of_answers(kl_T: Tensor, answer_T: Tensor, answers: int) -> Tensor:
    """The sum over each answer's trained tokens, [answers]: times its coefficient, the penalty of
    KL in the reward (RLOO, arXiv 2402.14740). answer_T: int64 number of each token's answer."""
    return kl_T.new_zeros(answers).index_add(0, answer_T, kl_T)
