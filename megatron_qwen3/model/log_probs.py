"""Log-probabilities of labels under logits that are split over the tensor ranks' vocabulary.

megatron-core has the cross-entropy alone; losses of post-training and the z-loss need the parts.
Legend: S sequence, B batch, V the whole vocabulary, v = V/tp this rank's part of it.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class _VocabParallelLogProbs(torch.autograd.Function):
    """Keeps the logarithm of the softmax of its slice and turns it into the gradient in place."""

    @staticmethod
    def forward(ctx: Any, logits_SBv: Tensor, labels_SB: Tensor, group: Any) -> Tensor:
        log_softmax_SBv = logits_SBv.log_softmax(-1, dtype=torch.float32)
        log_z_SB = logits_SBv[..., 0].float() - log_softmax_SBv[..., 0]
        local_SB, mine_SB = _local_labels(labels_SB, logits_SBv.shape[-1], group)
        log_prob_SB = log_softmax_SBv.gather(-1, local_SB.unsqueeze(-1)).squeeze(-1)
        rest_SB = None  # log of the part of the whole denominator that is this slice's
        if group.size() > 1:
            whole_SB = _log_sum_exp_over(log_z_SB, group)
            rest_SB = log_z_SB - whole_SB
            log_prob_SB = (log_prob_SB + rest_SB).masked_fill(~mine_SB, 0.0)
            dist.all_reduce(log_prob_SB, group=group)
            log_z_SB = whole_SB
        ctx.save_for_backward(log_softmax_SBv, local_SB, mine_SB)
        ctx.rest_SB, ctx.dtype = rest_SB, logits_SBv.dtype
        return torch.stack([log_prob_SB, log_z_SB])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_2SB: Tensor) -> tuple[Tensor, None, None]:
        log_softmax_SBv, local_SB, mine_SB = ctx.saved_tensors
        grad_log_prob_SB, grad_log_z_SB = grad_2SB.unbind(0)
        # d log p / d logit = [label] - softmax;  d log z / d logit = softmax
        scale_SB = grad_log_z_SB - grad_log_prob_SB
        if ctx.rest_SB is not None:
            scale_SB = scale_SB * ctx.rest_SB.exp()
        grad_SBv = log_softmax_SBv.exp_().mul_(scale_SB.unsqueeze(-1))
        at_label_SB1 = (grad_log_prob_SB * mine_SB).unsqueeze(-1)
        grad_SBv.scatter_add_(-1, local_SB.unsqueeze(-1), at_label_SB1)
        return grad_SBv.to(ctx.dtype), None, None


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
