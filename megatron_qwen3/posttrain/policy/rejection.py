"""Drops tokens and answers from training where trainer and sampler are too far apart.

    batch = without_rejected(batch, config.rl.loss)
    sequences = model.sum_over_data(trained_answers(batch))     # of objective.py, afterwards

A rejected token counts in no mean (verl's rejection masks), so this comes before the objective, as
soon as the trainer's log-probabilities are known. Extras are those of `objective.py`.
"""

from dataclasses import replace

import torch

from megatron_qwen3.posttrain.policy import importance
from megatron_qwen3.posttrain.policy.answers import Answers
from megatron_qwen3.posttrain.policy.objective import OLD, SAMPLER, SEQUENCE, SHARE
from megatron_qwen3.settings_rl import PolicyLossConfig
from megatron_qwen3.training.batch import TokenBatch


def without_rejected(batch: TokenBatch, settings: PolicyLossConfig) -> TokenBatch:
    """The batch with weight 0 where rl.loss.rejection rejects, and SHARE of the others."""
    if settings.rejection == "none":
        return batch
    extra, is_trained_BS = batch.extra, batch.weights_BS != 0
    apart_BS = (extra[OLD] - extra[SAMPLER]).masked_fill(~is_trained_BS, 0.0)
    answers = Answers.of(extra[SEQUENCE], is_trained_BS)
    limit = settings.rejection_limit
    is_kept_BS = importance.is_within(settings.rejection, apart_BS, answers, limit)
    kept = Answers.of(extra[SEQUENCE], is_trained_BS & is_kept_BS)
    share_BS = torch.where(kept.is_trained_BS, 1 / kept.counts_BS, 0.0)
    return replace(
        batch,
        weights_BS=batch.weights_BS.masked_fill(~is_kept_BS, 0.0),
        extra={**extra, SHARE: share_BS.to(extra[SHARE].dtype)},
    )
