"""Which of torch's kernels there are for a tensor, where the code has two ways.

torch has some of them for GPUs alone, some for a few dtypes. Tensors are asked, not the process:
a dry run's have no device at all.
"""

import torch
from torch import Tensor


def has_fused_norm(x: Tensor) -> bool:
    """Whether torch's RMS norm is one kernel; on a CPU it is a chain of passes."""
    return x.is_cuda


def has_grouped_product(rows: Tensor) -> bool:
    """Whether one kernel takes the rows of all experts; it takes bf16 alone."""
    return rows.is_cuda and rows.dtype == torch.bfloat16


def attention_knows_groups(q: Tensor) -> bool:
    """Whether query heads may share keys; the GPU's kernel for float32 has none."""
    return not (q.is_cuda and q.dtype == torch.float32)


def has_attention_of_cpu(q: Tensor) -> bool:
    """Whether the fused attention is the CPU's, which tells the softmax's denominator."""
    return not q.is_cuda


def has_packed_attention(q: Tensor) -> bool:
    """Whether one kernel takes stretches of many lengths: a GPU's flash attention."""
    head_dim = q.shape[-1]
    is_known = q.dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0 and head_dim <= 256
    return q.is_cuda and is_known


def has_packed_product(weight: Tensor) -> bool:
    """Whether oneDNN multiplies by a weight that it has packed once; in bf16 few CPUs can."""
    is_known = weight.dtype == torch.float32 and not weight.is_cuda
    return is_known and torch.backends.mkldnn.is_available()


def has_running_sum(x: Tensor) -> bool:
    """Whether torch's cumsum may be used: a GPU's has no fixed order, and where results are to be
    repeatable torch refuses it."""
    return not (x.is_cuda and torch.are_deterministic_algorithms_enabled())
