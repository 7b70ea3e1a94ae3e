"""Corrects for tokens to which trainer and sampler give different probabilities.

    d_BS = old_BS - sampler_BS                     # log p of the trainer - log p of the sampler
    weight_BS = weights("truncate", d_BS, answers, high=2.0)
    is_kept_BS = is_within("seq_mean_k3", d_BS, answers, high=0.05)

The sampler is another engine, or has older weights. Importance weights multiply a token's loss
(truncated importance sampling); rejection drops tokens or whole answers. Nothing here has a
derivative.
"""

import math

import torch
from torch import Tensor

from megatron_qwen3.posttrain.policy.answers import Answers
from megatron_qwen3.posttrain.teachers.divergences import sampled_kl


@torch.no_grad()
def weights(
    kind: str, difference: Tensor, answers: Answers, low: float = 0.0, high: float = math.inf
) -> Tensor:
    """exp of the difference of each token, or of its sum over the answer (sequence_…).

    truncate: at most `high`; mask: 0 outside of [low, high], as IcePop's; none: 1 everywhere.
    ValueError for another kind.
    """
    if kind == "none":
        return torch.ones_like(difference)
    if kind.startswith("sequence_"):
        difference, kind = answers.sums(difference), kind.removeprefix("sequence_")
    weight = difference.exp()
    if kind == "truncate":
        return weight.clamp_max(high)
    if kind == "mask":
        return torch.where((weight >= low) & (weight <= high), weight, 0.0)
    raise ValueError(
        f"{kind} is no importance weight; valid: none, truncate, mask, sequence_truncate, "
        "sequence_mask"
    )


@torch.no_grad()
def is_within(
    statistic: str, difference: Tensor, answers: Answers, high: float, low: float | None = None
) -> Tensor:
    """Whether a token, or all of its answer (seq_sum, seq_mean, seq_max), is accepted: bool.

    statistic: as rl.loss.rejection. high: of k1 the largest ratio of probabilities, and low the
    least, 1 / high if None; of k2 and k3 the largest value. As verl's rejection masks.
    ValueError for another statistic.
    """
    over, _, estimator = statistic.rpartition("_")
    if estimator == "k1":
        of_token = -difference
    else:
        of_token = sampled_kl(torch.zeros_like(difference), difference, estimator)
    reduce = {
        "token": lambda x: x,
        "seq_sum": answers.sums,
        "seq_mean": answers.means,
        "seq_max": answers.largest,
    }
    if over not in reduce or (over, estimator) == ("seq_max", "k1"):
        raise ValueError(f"{statistic} is no statistic of rejection")
    value: Tensor = reduce[over](of_token)
    if estimator == "k1":
        least = -math.log(high) if low is None else math.log(low)
        return (value >= least) & (value <= math.log(high))
    return value <= high


@torch.no_grad()
def is_stale(difference: Tensor, advantage: Tensor, answers: Answers, limit: float) -> Tensor:
    """Whether an answer of negative advantage has become less probable than when it was sampled, by
    more than `limit` nats per token: bool (off-policy sequence masking, DeepSeek-V3.2, as TRL's).

    difference: log p of the sampler - log p now.
    """
    return (advantage < 0) & (answers.means(difference) > limit)
