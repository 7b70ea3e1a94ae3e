"""The objectives of on-policy distillation: divergences that move a student towards its teacher.

    asked = asked_of(config, teacher_size)              # a head, for the teacher's model
    batch = with_answer(batch, teacher.scores(batch, asked, rows))
    engine.train_step(batch, towards(config, size, matrix_vG, shared), rate)

The trained tokens are those that the student sampled. No objective raises their own log p: the
label of a position only decides where the distributions are compared next.

- distill.top_k = 0: the divergence over the whole vocabulary (`model/divergence.py`), for which the
  teacher's hidden states are sent to the student's ranks;
- top_k > 0: that of K + 1 bins, the teacher's most probable ids and all others together; without
  the last bin a student lowers its reverse KL by taking mass from the K ids
  (`teachers/divergences.py`);
- divergence = "sampled": log p - log q of the sampled token as its advantage, a policy gradient.

Legend: B rows, S positions, K ids of each, G the teacher's hidden size, v this tensor rank's slice
of the vocabulary; p the teacher's probabilities, q the student's.
"""

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from megatron_qwen3.model.divergence import TEACHER_HIDDEN, against, hidden_states
from megatron_qwen3.model.outputs import Head, Outputs
from megatron_qwen3.model.teaching import at_ids_with_entropy, top_k_and_label
from megatron_qwen3.posttrain.policy import losses
from megatron_qwen3.posttrain.policy.answers import Answers
from megatron_qwen3.posttrain.policy.objective import SAMPLER, SEQUENCE
from megatron_qwen3.posttrain.teachers.divergences import jensen_shannon, with_rest
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_rl import DistillConfig, PolicyLossConfig
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.objectives import Objective, Values, per_token

METRICS: Final = ("entropy", "student_log_prob", "teacher_log_prob", "agreement")
"""Means over trained tokens: the student's entropy in nats, both sides' log p of the sampled token,
and the share of tokens that are the teacher's most probable one."""
MASSES: Final = ("teacher_mass", "student_mass")
"""With top_k, further metrics: the mass of both sides on the teacher's K ids."""
_BETAS: Final = {"forward_kl": 0.0, "reverse_kl": 1.0}
_LABEL = "teacher_log_prob"
_CLIP: Final = PolicyLossConfig()  # the defaults of rl.loss


def is_whole(distill: DistillConfig) -> bool:
    """Whether the whole vocabulary is compared."""
    return distill.divergence != "sampled" and not distill.top_k


def ids_of(distill: DistillConfig) -> int:
    """Number of the teacher's ids per position, where not the whole vocabulary is compared."""
    return distill.top_k or 1


def asked_of(config: Config, size: int) -> Head:
    """The head for a teacher in memory; size: the student's hidden size."""
    if is_whole(config.distill):
        bf16 = config.train.precision == "bf16"
        return hidden_states(size, torch.bfloat16 if bf16 else torch.float32)
    return top_k_and_label(ids_of(config.distill), config.distill.temperature)


def with_answer(batch: TokenBatch, answer: Outputs) -> TokenBatch:
    """The batch with the teacher's outputs as extras, as the student's objective reads them."""
    if TEACHER_HIDDEN in answer:
        return replace(batch, extra={**batch.extra, **answer})
    told = {
        "ids": answer["ids"],
        "teacher_log_probs": answer["log_probs"],
        "teacher_log_rest": answer["log_rest"],
        _LABEL: answer["log_prob"],
    }
    return replace(batch, extra={**batch.extra, **told})


def towards(
    config: Config, size: int = 0, matrix_vG: Tensor | None = None, shared: int = 0
) -> Objective:
    """The objective of distill.divergence, a mean over the trained tokens of the global batch.

    size, matrix_vG, shared: only for the whole vocabulary; arguments of `against`.
    """
    distill, name = config.distill, config.distill.divergence
    if is_whole(distill):
        beta = _BETAS.get(name, distill.beta)
        head = against(matrix_vG, size, beta, distill.temperature, shared)
        values, metrics = _of_whole, METRICS
    elif name == "sampled":
        head, values, metrics = _head_of_ids(distill, (SAMPLER, SEQUENCE)), _of_sampled, METRICS
    else:
        head, metrics = _head_of_ids(distill, ()), (*METRICS, *MASSES)

        def values(outputs: Outputs, batch: TokenBatch) -> dict[str, Tensor]:
            return _of_bins(outputs, batch, _BETAS.get(name, distill.beta))

    def named(outputs: Outputs, batch: TokenBatch) -> Values:
        found = values(outputs, batch)
        loss_BS = found.pop("loss")
        # The engine gives metrics a derivative of 0; 0 · inf would be NaN in every gradient.
        return {name: loss_BS, **{key: x.detach() for key, x in found.items()}}

    return Objective(head, named, {name: per_token}, dict.fromkeys(metrics, per_token))


def _head_of_ids(distill: DistillConfig, more: tuple[str, ...]) -> Head:
    K = ids_of(distill)
    head = at_ids_with_entropy(K, distill.temperature)
    targets = {"teacher_log_probs": (K,), "teacher_log_rest": (), _LABEL: ()}
    return head._replace(needs={**head.needs, **targets, **dict.fromkeys(more, ())})


def _of_whole(outputs: Outputs, _: TokenBatch) -> dict[str, Tensor]:
    return {
        "loss": outputs["divergence"],
        "entropy": outputs["entropy"],
        "student_log_prob": outputs["log_q"],
        "teacher_log_prob": outputs["log_p"],
        "agreement": outputs["is_best"],
    }


def _of_bins(outputs: Outputs, batch: TokenBatch, beta: float) -> dict[str, Tensor]:
    log_q_BSK, log_p_BSK = outputs["log_probs"], batch.extra["teacher_log_probs"]
    student = with_rest(log_q_BSK, outputs["log_rest"])
    teacher = with_rest(log_p_BSK, batch.extra["teacher_log_rest"])
    return {
        "loss": jensen_shannon(student, teacher, beta),
        "teacher_mass": log_p_BSK.exp().sum(-1),
        "student_mass": log_q_BSK.exp().sum(-1),
        **_of_labels(outputs, batch),
    }


def _of_sampled(outputs: Outputs, batch: TokenBatch) -> dict[str, Tensor]:
    """log p - log q of the sampled token, at most 20 nats, is its advantage in rl.loss's default
    loss.

    The ratio is to the sampling policy: 1 but for rounding in the first update on a batch.
    """
    answers = Answers.of(batch.extra[SEQUENCE], batch.weights_BS != 0)
    is_none_BS = batch.weights_BS == 0
    log_q_BS = outputs["log_prob"].masked_fill(is_none_BS, 0.0)
    log_p_BS, before_BS = (
        batch.extra[name].masked_fill(is_none_BS, 0.0) for name in (_LABEL, SAMPLER)
    )
    advantage_BS = losses.sampled_advantage(log_q_BS, log_p_BS, _CLIP.log_ratio_limit)
    moved_BS, limit = log_q_BS - before_BS, _CLIP.log_ratio_limit
    ratio_BS = losses.log_ratio("token", moved_BS, answers, limit).exp()
    low, high, dual = _CLIP.clip_low, _CLIP.clip_high, _CLIP.dual_clip
    loss_BS = losses.clipped(ratio_BS, advantage_BS, low, high, dual)
    return {"loss": loss_BS, **_of_labels(outputs, batch)}


def _of_labels(outputs: Outputs, batch: TokenBatch) -> dict[str, Tensor]:
    is_best_BS = batch.extra["ids"][..., 0] == batch.labels_BS
    return {
        "entropy": outputs["entropy"],
        "student_log_prob": outputs["log_prob"],
        "teacher_log_prob": batch.extra[_LABEL],
        "agreement": is_best_BS.to(outputs["entropy"].dtype),
    }
