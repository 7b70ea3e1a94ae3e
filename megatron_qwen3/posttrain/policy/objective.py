"""The objective of a policy's update: its losses and its metrics.

    objective = policy_objective(config, sequences=256)
    metrics = engine.train_step(batch, objective, rate)

The batch has rows of answers, each a document of its own after its prompt; its weights are 1 where
a sampled token is the label, and its extras, [B, S] float32 (SEQUENCE int64), hold for such a label

- ADVANTAGE, of its answer or of the token alone;
- OLD, its log p before the first update on this batch of rollouts, by this model;
- SAMPLER, its log p when it was sampled, under the sampling weights;
- REFERENCE, its log p under the reference, where rl.kl.coefficient is above 0;
- SEQUENCE, the number of its answer in the row, -1 where there is none;
- SHARE, 1 / trained tokens of its answer.

All log-probabilities are of logits divided by rollouts.temperature. Sums over whole answers stay
within rows, since an answer is in one row, so that micro-batches and ranks change nothing.

Legend: B rows, S positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from megatron_qwen3.model.distributions import log_probs_and_entropy
from megatron_qwen3.model.outputs import Outputs
from megatron_qwen3.posttrain.policy import importance, kl, losses
from megatron_qwen3.posttrain.policy.answers import Answers
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_rl import KlConfig, PolicyLossConfig, RlConfig
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.objectives import Mean, Objective, Values, per_token

ADVANTAGE, OLD, SAMPLER = "advantage", "old_log_prob", "sampler_log_prob"
REFERENCE, SEQUENCE, SHARE = "reference_log_prob", "sequence", "share"

METRICS: Final = (
    "entropy",
    "ratio",
    "clip_share",
    "policy_change",
    "importance",
    "importance_limited",
    "mismatch",
    "mismatch_kl",
    "mismatch_share",
)
"""Means over the trained tokens of an update: the entropy in nats; the loss's ratio, and the share
of tokens that its clip acts on; KL (k3) from before the updates on this batch of rollouts to now;
the importance weights, and the share of them that were cut; and between trainer and sampler |d| in
nats, KL (k3) and the share of tokens whose probability differs by more than 1 %. With a reference,
`kl` is reported as well."""

TOKEN_ERROR: Final = 0.01  # relative difference of probabilities that mismatch_share counts
_FARTHEST: Final = 20.0  # nats: limit of a difference, whose exp stays finite


def policy_objective(
    config: Config,
    sequences: int,
    masked: int = 0,
    entropy_coefficient: float | None = None,
    has_old: bool = True,
) -> Objective:
    """The losses of rl.loss, rl.kl and rl.entropy, each a mean over the global batch.

    sequences: answers of the global batch that have a trained token; masked: answers of the same
    update without one, which rl.loss.masked = "counted" divides by too.
    entropy_coefficient: of this update, rl.entropy.coefficient if None.
    has_old: False for a batch without OLD before its first update: the present log p then stands
    for the old one, so the ratio is 1, with the gradient of log p.
    ValueError where there is no sequence.
    """
    settings = config.rl
    bonus = settings.entropy.coefficient if entropy_coefficient is None else entropy_coefficient
    has_reference = settings.kl.coefficient > 0
    of_loss = _mean(settings.loss, sequences, masked, config.rollouts.max_new_tokens)
    trained = {"policy_loss": of_loss}
    if has_reference and settings.kl.place == "loss":
        trained["kl_loss"] = of_loss
    if bonus:
        trained["entropy_loss"] = per_token
    reported = dict.fromkeys((*METRICS, *(("kl",) if has_reference else ())), per_token)
    needed = [ADVANTAGE, SAMPLER, SEQUENCE, SHARE]
    needed += [OLD] if has_old else []
    needed += [REFERENCE] if has_reference else []
    head = log_probs_and_entropy(config.rollouts.temperature)
    return Objective(
        head._replace(needs=dict.fromkeys(needed, ())),
        _values(settings, bonus, trained),
        trained,
        reported,
        {"mismatch_max": per_token},
    )


def _mean(settings: PolicyLossConfig, sequences: int, masked: int, most_tokens: int) -> Mean:
    """rl.loss.mean."""
    count = sequences + (masked if settings.masked == "counted" else 0)
    if sequences < 1:
        raise ValueError(f"an update on {sequences} answers; valid: at least 1")
    if settings.mean == "token":
        return per_token
    if settings.mean == "sequence_mean":
        return Mean(_shares, count)
    if settings.mean == "sequence_sum":
        return Mean(_ones, count)
    return Mean(_ones, count * (settings.length or most_tokens))


def _ones(batch: TokenBatch) -> Tensor:
    return batch.weights_BS


def _shares(batch: TokenBatch) -> Tensor:
    return batch.weights_BS * batch.extra[SHARE].to(batch.weights_BS.dtype)


def trained_answers(batch: TokenBatch) -> Tensor:
    """Number of answers of a batch that have a trained token, float64."""
    return _shares(batch).sum(dtype=torch.float64).round()


@dataclass(frozen=True, eq=False)
class _Tokens:
    """The trained tokens of a batch; values elsewhere read as 0, derivatives included."""

    log_prob_BS: Tensor
    batch: TokenBatch
    answers: Answers

    def zeroed(self, x_BS: Tensor) -> Tensor:
        return x_BS.masked_fill(~self.answers.is_trained_BS, 0.0)

    def extra(self, name: str) -> Tensor:
        return self.zeroed(self.batch.extra[name])

    def log_prob(self) -> Tensor:
        return self.zeroed(self.log_prob_BS)

    def old(self) -> Tensor:
        """log p before the first update; the present one where the batch has no OLD."""
        return self.extra(OLD) if OLD in self.batch.extra else self.log_prob().detach()


def _values(
    settings: RlConfig, bonus: float, trained: Mapping[str, Mean]
) -> Callable[[Outputs, TokenBatch], Values]:
    def values(outputs: Outputs, batch: TokenBatch) -> Values:
        answers = Answers.of(batch.extra[SEQUENCE], batch.weights_BS != 0)
        tokens = _Tokens(outputs["log_prob"], batch, answers)
        named = _of_policy(tokens, settings.loss) | _of_mismatch(tokens)
        if settings.kl.coefficient > 0:
            named["kl"] = _of_reference(tokens, settings.kl)
        if "kl_loss" in trained:
            weight = named["ratio"] if settings.kl.weigh_by_ratio else 1.0
            named["kl_loss"] = settings.kl.coefficient * weight * named["kl"]
        named["entropy"] = outputs["entropy"]
        if "entropy_loss" in trained:
            named["entropy_loss"] = -bonus * named["entropy"]
        # The engine gives metrics a derivative of 0; 0 · inf would be NaN in every gradient.
        return {name: x if name in trained else x.detach() for name, x in named.items()}

    return values


def _of_policy(tokens: _Tokens, settings: PolicyLossConfig) -> dict[str, Tensor]:
    """The loss of each token, and its metrics."""
    answers, low, high = tokens.answers, settings.clip_low, settings.clip_high
    log_prob_BS, advantage_BS = tokens.log_prob(), tokens.extra(ADVANTAGE)
    moved_BS = log_prob_BS - tokens.old()
    ratio_BS = losses.log_ratio(settings.ratio, moved_BS, answers, settings.log_ratio_limit).exp()
    if settings.clip == "cispo":
        loss_BS = losses.cispo(ratio_BS, log_prob_BS, advantage_BS, low, high)
    else:
        loss_BS = losses.clipped(ratio_BS, advantage_BS, low, high, settings.dual_clip)
    if settings.stale_limit:
        behind_BS = tokens.extra(SAMPLER) - log_prob_BS
        limit = settings.stale_limit
        is_stale_BS = importance.is_stale(behind_BS, advantage_BS, answers, limit)
        loss_BS = torch.where(is_stale_BS, 0.0, loss_BS)
    weight_BS, is_limited_BS = _importance(tokens, settings)
    is_clipped_BS = losses.is_clipped(ratio_BS, advantage_BS, low, high, settings.clip)
    return {
        "policy_loss": loss_BS * weight_BS,
        "ratio": ratio_BS,
        "clip_share": is_clipped_BS.to(loss_BS.dtype),
        "policy_change": _k3(moved_BS),
        "importance": weight_BS,
        "importance_limited": is_limited_BS.to(loss_BS.dtype),
    }


def _importance(tokens: _Tokens, settings: PolicyLossConfig) -> tuple[Tensor, Tensor]:
    """The importance weights, trainer over sampler, and which of them were cut."""
    apart_BS, kind = tokens.old() - tokens.extra(SAMPLER), settings.importance
    bounds = settings.importance_low, settings.importance_high
    weight_BS = importance.weights(kind, apart_BS, tokens.answers, *bounds)
    if kind == "none":
        return weight_BS, torch.zeros_like(weight_BS)
    whole = "sequence_truncate" if kind.startswith("sequence_") else "truncate"
    return weight_BS, weight_BS != importance.weights(whole, apart_BS, tokens.answers)


def _of_reference(tokens: _Tokens, settings: KlConfig) -> Tensor:
    log_prob_BS, reference_BS = tokens.log_prob(), tokens.extra(REFERENCE)
    how = settings.estimator, settings.limit, settings.most
    return kl.estimate(log_prob_BS, reference_BS, *how)


def _of_mismatch(tokens: _Tokens) -> dict[str, Tensor]:
    """The distance of trainer and sampler before the first update."""
    apart_BS = tokens.old() - tokens.extra(SAMPLER)
    return {
        "mismatch": apart_BS.abs(),
        "mismatch_max": apart_BS.abs(),
        "mismatch_kl": _k3(apart_BS),
        "mismatch_share": (apart_BS.expm1().abs() > TOKEN_ERROR).to(apart_BS.dtype),
    }


def _k3(difference: Tensor) -> Tensor:
    """The k3 estimate for metrics, finite for any difference."""
    return kl.estimate(torch.zeros_like(difference), difference, "k3", limit=_FARTHEST)
