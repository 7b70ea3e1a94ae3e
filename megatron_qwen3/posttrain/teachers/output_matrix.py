"""A teacher's output matrix beside its student's, for heads that compare whole distributions.

    matrix_vG = output_matrix(teacher.model, engine.model)    # a copy; all ranks call it

Legend: G the teacher's hidden size, V its vocabulary, v this tensor rank's slice of the student's.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.training.model import Model


@torch.no_grad()
def output_matrix(teacher: Model, student: Model) -> Tensor | None:
    """[v, G]: rows of the teacher's matrix for the ids of this rank's logits, zeros for ids that
    the teacher lacks. None except on the student's last stage."""
    whole_VG = _whole(teacher)
    if not student.chunks[-1].post_process:
        return None
    tensor = student.groups.ranks.tp
    v = student.config.model.vocab_size // tensor.size()
    rows_vG = whole_VG[tensor.rank() * v : (tensor.rank() + 1) * v]
    slice_vG = whole_VG.new_zeros((v, whole_VG.shape[1]))
    slice_vG[: len(rows_vG)] = rows_vG
    return slice_vG


def _whole(teacher: Model) -> Tensor:
    """[V, G], on every rank, for a moment."""
    model, ranks, chunk = teacher.config.model, teacher.groups.ranks, teacher.chunks[-1]
    weight = chunk.output_weight() if chunk.post_process else next(chunk.parameters())
    whole_VG = weight.new_empty((model.vocab_size, model.hidden_size))
    if chunk.post_process:
        dist.all_gather_into_tensor(whole_VG.view(-1), weight.reshape(-1), group=ranks.tp)
    dist.broadcast(whole_VG, group=ranks.pp, group_src=ranks.pp.size() - 1)
    return whole_VG
