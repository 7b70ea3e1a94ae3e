"""Losses of sampled tokens by the ratio of their probability now and before the update.

    log_ratio_BS = log_ratio("token", log_prob_BS - old_BS, answers, limit=20.0)
    loss_BS = clipped(log_ratio_BS.exp(), advantage_BS, low=0.2, high=0.28, dual=3.0)

Pure functions of one number per token, in the dtype given, without mean; values at untrained tokens
have no meaning. README.md lists the algorithms that publish these formulas.
"""

import torch
from torch import Tensor

from megatron_qwen3.posttrain.policy.answers import Answers


def log_ratio(kind: str, difference: Tensor, answers: Answers, limit: float = 0.0) -> Tensor:
    """log of the ratio in a token's loss, from log p now - log p before of each token.

    kind: token; sequence_mean, the mean of its answer (GSPO, arXiv 2507.18071, equation 7);
    sequence, the sum (RLOO, arXiv 2402.14740). limit: clamps the log ratio, without derivative
    beyond; 0: no clamp. ValueError for another kind.
    """
    if kind == "sequence_mean":
        difference = answers.means(difference)
    elif kind == "sequence":
        difference = answers.sums(difference)
    elif kind != "token":
        raise ValueError(f"{kind} is no ratio; valid: token, sequence_mean, sequence")
    return difference.clamp(-limit, limit) if limit else difference


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float = 0.0) -> Tensor:
    """max(-A r, -A clip(r, 1 - low, 1 + high)) (PPO, arXiv 1707.06347; DAPO's clip-higher has
    high > low), where A < 0 at most -A · dual (arXiv 1912.09729); dual: 0 turns this off."""
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high))
    if not dual:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -advantage * dual), loss)


def cispo(ratio: Tensor, log_prob: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """-clip(r, 1 - low, 1 + high) A log p, r a constant (MiniMax-M1, arXiv 2506.13585); low = 1
    has no lower bound, as in the paper and in TRL."""
    return -ratio.detach().clamp(1 - low, 1 + high) * advantage * log_prob


def is_clipped(
    ratio: Tensor, advantage: Tensor, low: float, high: float, clip: str = "ppo"
) -> Tensor:
    """Where clipping acts, bool. clip: as rl.loss.clip."""
    is_low, is_high = ratio < 1 - low, ratio > 1 + high
    if clip == "cispo":
        return is_low | is_high
    return is_high & (advantage > 0) | is_low & (advantage < 0)


def sampled_advantage(log_prob: Tensor, teacher: Tensor, limit: float = 0.0) -> Tensor:
    """log p of the teacher - log p of the student at the token that the student sampled: -k1 as the
    advantage of on-policy distillation, without derivative, clamped to ± limit; 0: no clamp."""
    advantage = (teacher - log_prob).detach()
    return advantage.clamp(-limit, limit) if limit else advantage
