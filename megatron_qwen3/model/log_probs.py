"""Log-probabilities of labels under logits that are split over the tensor ranks' vocabulary.

megatron-core has the cross-entropy alone; losses of post-training and the z-loss need the parts.
Legend: S sequence, B batch, V the whole vocabulary, v = V/tp this rank's part of it.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _VocabParallelLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_SBv: Tensor, labels_SB: Tensor, group: Any) -> Tensor:
        split = group.size() > 1
        logits = logits_SBv.float()
        log_z_SB = logits.logsumexp(-1)
        local_SB, mine_SB = _local_labels(labels_SB, logits.shape[-1], group)
        picked_SB = logits.gather(-1, local_SB.unsqueeze(-1)).squeeze(-1)
        if split:
            picked_SB = picked_SB.masked_fill(~mine_SB, 0.0)
            dist.all_reduce(picked_SB, group=group)
            log_z_SB = _log_sum_exp_over(log_z_SB, group)
        ctx.save_for_backward(logits_SBv, log_z_SB, local_SB, mine_SB)
        return torch.stack([picked_SB - log_z_SB, log_z_SB])

    @staticmethod
    def backward(ctx: Any, grad_2SB: Tensor) -> tuple[Tensor, None, None]:
        logits_SBv, log_z_SB, local_SB, mine_SB = ctx.saved_tensors
        grad_log_prob_SB, grad_log_z_SB = grad_2SB.unbind(0)
        # d log p / d logit = [label] - softmax;  d log z / d logit = softmax
        grad = torch.sub(logits_SBv, log_z_SB.unsqueeze(-1)).float().exp_()
        grad *= (grad_log_z_SB - grad_log_prob_SB).unsqueeze(-1)
        at_label_SB1 = (grad_log_prob_SB * mine_SB).unsqueeze(-1)
        grad.scatter_add_(-1, local_SB.unsqueeze(-1), at_label_SB1)
        return grad.to(logits_SBv.dtype), None, None


def vocab_parallel_log_probs(logits_SBv: Tensor, labels_SB: Tensor, group: Any) -> Tensor:
    """Float32 [2, S, B]: log p(label), and log z, the log-sum-exp of all V logits.

    logits_SBv: this tensor rank's slice; labels_SB: ids below V; group: the tensor ranks.
    """
    return _VocabParallelLogProbs.apply(logits_SBv, labels_SB, group)


def _local_labels(labels_SB: Tensor, width: int, group: Any) -> tuple[Tensor, Tensor]:
    """Labels as columns of this rank's slice (0 where another rank has it), and whose they are."""
    local_SB = labels_SB - group.rank() * width
    mine_SB = (local_SB >= 0) & (local_SB < width)
    return local_SB.masked_fill(~mine_SB, 0), mine_SB


def _log_sum_exp_over(local_SB: Tensor, group: Any) -> Tensor:
    peak_SB = local_SB.clone()
    dist.all_reduce(peak_SB, op=dist.ReduceOp.MAX, group=group)
    total_SB = (local_SB - peak_SB).exp_()
    dist.all_reduce(total_SB, group=group)
    return total_SB.log_().add_(peak_SB)
