"""Soft targets as an objective: a student follows its teacher's probabilities, not labels alone.

    objective = distilled(top_k=64, share=0.8)
    engine.train_step(with_targets(batch, ids_BSK, log_probs_BSK, log_rest_BS), objective, rate)

The loss of a position is share · KL(teacher ‖ student) + (1 - share) · cross-entropy. The KL is
over K + 1 bins: the teacher's K most probable ids, and all others together (`divergences.py`). The
student's side is computed in one pass over its logits, which never exist as a whole.

At a temperature both sides' logits are divided by it in the KL, the cross-entropy stays as it is,
and the KL is not multiplied by the temperature's square: as in GKD (2306.13649).
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from megatron_qwen3.model.distributions import at_ids_and_label
from megatron_qwen3.model.outputs import Outputs
from megatron_qwen3.posttrain.teachers.divergences import forward_kl, with_rest
from megatron_qwen3.posttrain.teachers.teacher_set import as_extra
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.objectives import Objective, Values, per_token

METRICS = ("kl", "cross_entropy", "teacher_mass", "student_mass")


def distilled(top_k: int, temperature: float = 1.0, share: float = 1.0) -> Objective:
    """The objective, for batches `with_targets` of top_k ids. ValueError: share outside (0, 1].

    share: of the KL, above 0 to 1; the rest is cross-entropy's. Reported: kl and cross_entropy,
    unscaled, and the mass of teacher and student on the K ids.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}; valid: above 0, at most 1")

    def values(outputs: Outputs, batch: TokenBatch) -> Values:
        parts = compared(outputs, batch.extra)
        loss_BS = parts["kl"]
        if share < 1:  # at 1 the label does not enter the gradient
            loss_BS = share * loss_BS + (1 - share) * parts["cross_entropy"]
        return {"soft_targets": loss_BS, **parts}

    head, metrics = at_ids_and_label(top_k, temperature), dict.fromkeys(METRICS, per_token)
    return Objective(head, values, {"soft_targets": per_token}, metrics)


def compared(outputs: Outputs, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """METRICS of each position, [B, S], of `at_ids_and_label`'s outputs and a batch's targets."""
    log_q_BSK, log_p_BSK = outputs["log_probs"], targets["teacher_log_probs"]
    student = with_rest(log_q_BSK, outputs["log_rest"])
    teacher = with_rest(log_p_BSK, targets["teacher_log_rest"])
    return {
        "kl": forward_kl(student, teacher),
        "cross_entropy": -outputs["log_prob"],
        "teacher_mass": log_p_BSK.exp().sum(-1),
        "student_mass": log_q_BSK.detach().exp().sum(-1),
    }


def with_targets(
    batch: TokenBatch, ids_BSK: Tensor, log_probs_BSK: Tensor, log_rest_BS: Tensor
) -> TokenBatch:
    """The batch, with a teacher's K distinct ids of each position, their log p and the rest's."""
    targets = as_extra(ids_BSK, log_probs_BSK, log_rest_BS)
    return replace(batch, extra={**batch.extra, **targets})
