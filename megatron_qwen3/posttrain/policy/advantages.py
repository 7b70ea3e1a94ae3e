"""Advantages: how much better an answer is than the others to its prompt.

    advantage_N = advantages(reward_N, group_N, config.rl.advantage)
    advantage_N = advantages(parts_NP, group_N, config.rl.advantage, weights=(1.0, 0.5))

Every choice is a setting of `rl.advantage`; README.md lists the choice of each algorithm and
library. A reward that is NaN was not scored: it enters no mean or deviation, and its advantage is
0, as is the advantage of an answer without others to compare it with. Groups may be of any size and
in any order. numpy alone, in float64: the first rank computes advantages once per batch.

Legend: N answers, P parts of a reward.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_qwen3.settings_rl import AdvantageConfig

Numbers = npt.NDArray[np.float64]
Groups = npt.NDArray[np.intp]


def advantages(
    rewards: npt.ArrayLike,
    group_N: npt.ArrayLike,
    settings: AdvantageConfig,
    *,
    weights: npt.ArrayLike = 1.0,
    penalty_N: npt.ArrayLike = 0.0,
    tokens_N: npt.ArrayLike | None = None,
) -> Numbers:
    """The advantage of each answer, [N].

    rewards: [N], or [N, P] in parts, NaN where not scored; a single NaN part counts nothing.
    group_N: the number of each answer's prompt. weights: of parts, [P] or [N, P]. penalty_N: is
    subtracted from the reward, such as KL in the reward, after rl.advantage.reward_limit and only
    from the sum of parts. tokens_N: trained tokens, which scale = "whiten_tokens" needs.

    ValueError where tokens_N is missing, or shapes do not agree.
    """
    parts_NP = np.asarray(rewards, np.float64)
    parts_NP = parts_NP[:, None] if parts_NP.ndim == 1 else parts_NP
    group_N = np.unique(np.asarray(group_N), return_inverse=True)[1]
    if len(group_N) != len(parts_NP):
        raise ValueError(f"{len(parts_NP)} rewards are of {len(group_N)} groups' members")
    if settings.scale == "whiten_tokens" and tokens_N is None:
        raise ValueError('rl.advantage.scale = "whiten_tokens" needs the tokens of each answer')
    tokens_N = np.ones(len(group_N)) if tokens_N is None else np.asarray(tokens_N, np.float64)
    if settings.parts == "each":
        each_NP = np.stack([_of(x_N, group_N, settings, tokens_N) for x_N in parts_NP.T], 1)
        advantage_N = _whitened(_sum(each_NP, weights), settings)
    else:
        reward_N = _limited(_sum(parts_NP, weights), settings.reward_limit)
        advantage_N = _of(reward_N - np.asarray(penalty_N), group_N, settings, tokens_N)
    return np.nan_to_num(advantage_N, nan=0.0)


def teaches(
    rewards: npt.ArrayLike, settings: AdvantageConfig, weights: npt.ArrayLike = 1.0
) -> bool:
    """Whether any answer of a group would get an advantage in a batch of such groups.

    rewards, weights: arguments of `advantages`, of the group's answers.
    """
    parts_NP = np.asarray(rewards, np.float64)
    if np.isnan(parts_NP).all():
        return False
    if settings.baseline == "none" and settings.scale != "group":
        return True  # an advantage does not depend on the group
    if settings.scale != "group":
        settings = replace(settings, scale="none")
    group_N = np.zeros(len(parts_NP), np.intp)
    return bool(advantages(parts_NP, group_N, settings, weights=weights).any())


def _sum(parts_NP: Numbers, weights: npt.ArrayLike) -> Numbers:
    """The weighted sum of the scored parts; NaN where no part is scored."""
    weight_NP = np.broadcast_to(np.asarray(weights, np.float64), parts_NP.shape)
    sum_N: Numbers = np.nansum(parts_NP * weight_NP, axis=1)
    return np.where(np.isnan(parts_NP).all(1), np.nan, sum_N)


def _limited(reward_N: Numbers, limit: float) -> Numbers:
    return np.clip(reward_N, -limit, limit) if limit else reward_N


def _of(
    reward_N: Numbers, group_N: Groups, settings: AdvantageConfig, tokens_N: Numbers
) -> Numbers:
    """Rewards less the baseline, scaled; NaN where an answer has no reward or no peers."""
    is_scored_N = ~np.isnan(reward_N)
    count_N = _sum_of_group(is_scored_N, group_N)
    mean_N = _sum_of_group(np.where(is_scored_N, reward_N, 0.0), group_N) / np.maximum(count_N, 1)
    above_N = reward_N - mean_N
    squares_N = _sum_of_group(np.where(is_scored_N, above_N, 0.0) ** 2, group_N)
    deviation_N = np.sqrt(squares_N / np.maximum(count_N - _bias(settings), 1))
    advantage_N = {
        "group": above_N,
        "leave_one_out": above_N * count_N / np.maximum(count_N - 1, 1),
        "none": reward_N,
    }[settings.baseline]
    if settings.baseline != "none" or settings.scale == "group":
        is_alike_N = _is_zero(deviation_N, settings) & is_scored_N
        lone_N = reward_N if settings.lone == "reward" else np.full_like(reward_N, np.nan)
        advantage_N = np.where(is_alike_N, 0.0, advantage_N)
        advantage_N = np.where(count_N == 1, lone_N, advantage_N)
        deviation_N = np.where(count_N == 1, 1.0, deviation_N)
    if settings.scale == "group":
        return advantage_N / np.where(deviation_N > 0, deviation_N + settings.epsilon, 1.0)
    if settings.scale == "batch":
        return _divided(advantage_N, _deviation(reward_N, settings), settings)
    if settings.scale == "whiten":
        return _whitened(advantage_N, settings)
    if settings.scale == "whiten_tokens":
        return _whitened_over_tokens(advantage_N, tokens_N, settings)
    return advantage_N


def _sum_of_group(x_N: npt.NDArray[Any], group_N: Groups) -> Numbers:
    """For each answer, the sum over its group."""
    return np.bincount(group_N, np.asarray(x_N, np.float64))[group_N].astype(np.float64)


def _bias(settings: AdvantageConfig) -> int:
    """The number that is subtracted from the count in a variance's denominator."""
    return 1 if settings.deviation == "unbiased" else 0


def _is_zero(deviation: Numbers, settings: AdvantageConfig) -> npt.NDArray[np.bool_]:
    return np.asarray((deviation < settings.zero_below) | (deviation == 0))


def _deviation(x_N: Numbers, settings: AdvantageConfig) -> Numbers:
    """The standard deviation of the entries that are not NaN; 0 of fewer than two."""
    known = x_N[~np.isnan(x_N)]
    return np.asarray(known.std(ddof=_bias(settings)) if len(known) > 1 else 0.0)


def _divided(x_N: Numbers, deviation: Numbers, settings: AdvantageConfig) -> Numbers:
    """Divided by a deviation of the batch; 0 where all rewards of the batch are equal."""
    if _is_zero(deviation, settings):
        return np.zeros_like(x_N)
    return x_N / (deviation + settings.epsilon)


def _whitened(x_N: Numbers, settings: AdvantageConfig) -> Numbers:
    """Advantages less their mean over the batch, divided by their deviation."""
    mean = np.nanmean(x_N) if not np.isnan(x_N).all() else 0.0
    return _divided(x_N - mean, _deviation(x_N, settings), settings)


def _whitened_over_tokens(x_N: Numbers, tokens_N: Numbers, settings: AdvantageConfig) -> Numbers:
    """Whitened as if each trained token had the advantage of its answer: verl's masked_whiten,
    which divides by the root of variance + epsilon²."""
    known_N, tokens_N = np.nan_to_num(x_N, nan=0.0), np.where(np.isnan(x_N), 0.0, tokens_N)
    total = tokens_N.sum()
    mean = (known_N * tokens_N).sum() / max(total, 1.0)
    squares = (np.square(known_N - mean) * tokens_N).sum()
    variance = squares / max(total - _bias(settings), 1.0)
    if _is_zero(np.sqrt(variance), settings):
        return np.zeros_like(x_N)
    return np.asarray((x_N - mean) / np.sqrt(variance + settings.epsilon**2))
