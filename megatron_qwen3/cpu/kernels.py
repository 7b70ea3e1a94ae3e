"""Tells which of torch's kernels exist for a tensor, where the code has two ways.

torch has some kernels only for GPUs, some for a few dtypes. The answer depends on the tensor, not
on the process: a dry run's tensors have no device at all.
"""

import torch
from torch import Tensor


def has_fused_norm(x: Tensor) -> bool:
    """Whether torch's RMS norm is one kernel; on a CPU it is a chain of passes."""
    return x.is_cuda


def has_grouped_product(rows: Tensor) -> bool:
    """Whether one kernel takes the rows of all experts; it takes only bf16."""
    return rows.is_cuda and rows.dtype == torch.bfloat16


def attention_knows_groups(q: Tensor) -> bool:
    """Whether query heads may share keys; the GPU's float32 kernel does not allow it."""
    return not (q.is_cuda and q.dtype == torch.float32)


def has_attention_of_cpu(q: Tensor) -> bool:
    """Whether the fused attention is the CPU's, which returns the softmax's denominator."""
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
    """Whether torch's cumsum may be used: a GPU's has no fixed order, and torch refuses it where
    results must be repeatable."""
    return not (x.is_cuda and torch.are_deterministic_algorithms_enabled())
