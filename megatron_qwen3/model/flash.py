"""torch's fused attention of a batch, forward and backward, with the logarithm of the denominator.

    mixed, lse = forward(q, k, v, is_causal)
    dq, dk, dv = backward(grad, q, k, v, mixed, lse, is_causal)

The operations below F.scaled_dot_product_attention, which returns no lse. With the result and lse
of a softmax over more keys than k, `backward` gives this part of that softmax's gradients: it
computes only the weights exp(score - lse) and Σ grad · mixed from them. It needs nothing saved by
`forward`.

Never call them without queries or keys (the CPU crashes), and is_causal needs as many
queries as keys. Scores are over √D; lse is the natural logarithm of Σ exp(score), at least float32.
Legend: b batch, n query heads, g groups (n is a multiple), S queries, T keys, D head size;
q, grad and mixed [b, n, S, D], k and v [b, g, T, D], lse [b, n, S].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_qwen3.cpu import kernels

_aten = torch.ops.aten
_ALIGNED = 32  # queries whose lse the GPU's efficient kernel reads at a time
_ALIGNED_MASK = 16  # numbers of a mask that it reads at a time
Three = tuple[Tensor, Tensor, Tensor]


def forward(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √D) v, and lse. mask: added to the scores, [b or 1, n or 1, S, T], of q's
    dtype; some key is left to every query. There is no gradient with a mask."""
    q, k, v = (readable(x) for x in (q, k, v))
    if kernels.has_attention_of_cpu(q):
        mixed, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, attn_mask=mask
        )
    elif kernels.has_packed_attention(q) and mask is None:
        mixed, lse = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[:2]
    else:
        k, v = (_for_each_head(x, q) for x in (k, v))
        bias = None if mask is None else _aligned(mask).expand(*q.shape[:-1], k.shape[2])
        mixed, lse = _aten._scaled_dot_product_efficient_attention(
            q, k, v, bias, True, 0.0, is_causal
        )[:2]
    return mixed, lse[..., : q.shape[2]]


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor, lse: Tensor, is_causal: bool
) -> Three:
    """The gradients by q, k and v, of their dtype."""
    grad, q, k, v, mixed = (readable(x) for x in (grad, q, k, v, mixed))
    if kernels.has_attention_of_cpu(q):
        gradients: Three = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, mixed, lse, 0.0, is_causal
        )
        return gradients
    if kernels.has_packed_attention(q):
        return _flash_backward(grad, q, k, v, mixed, lse.contiguous(), is_causal)
    return _efficient_backward(grad, q, k, v, mixed, lse, is_causal)


def readable(x: Tensor) -> Tensor:
    """`x` with its last axis contiguous, which kernels need."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor, lse: Tensor, is_causal: bool
) -> Three:
    S, T = q.shape[2], k.shape[2]
    random = torch.empty(2, dtype=torch.uint64, device=q.device)  # dropout's state; unused
    gradients: Three = _aten._scaled_dot_product_flash_attention_backward(
        *(grad, q, k, v, mixed, lse, None, None, S, T, 0.0, is_causal, random, random.new_empty(()))
    )
    return gradients


def _efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mixed: Tensor, lse: Tensor, is_causal: bool
) -> Three:
    groups = k.shape[1]
    k, v = (_for_each_head(x, q) for x in (k, v))
    S = q.shape[2]
    rows = -(-S // _ALIGNED) * _ALIGNED
    padded = lse.new_full((*lse.shape[:-1], rows), torch.inf)  # gives weight 0
    padded[..., :S] = lse
    none = torch.empty((), dtype=torch.int64, device=q.device)
    asked = [True, True, True, False]
    dq, dk, dv, _ = _aten._scaled_dot_product_efficient_attention_backward(
        *(grad, q, k, v, None, mixed, padded, none, none, 0.0, asked, is_causal)
    )
    return dq, *(x.unflatten(1, (groups, -1)).sum(2) for x in (dk, dv))


def _aligned(mask_bnST: Tensor) -> Tensor:
    """A copy whose rows are aligned for the efficient kernel."""
    T = mask_bnST.shape[-1]
    return F.pad(mask_bnST, (0, -T % _ALIGNED_MASK))[..., :T]


def _for_each_head(x_bgTD: Tensor, q_bnSD: Tensor) -> Tensor:
    """Keys or values repeated per query head: the kernel for float32 knows no groups."""
    return x_bgTD.repeat_interleave(q_bnSD.shape[1] // x_bgTD.shape[1], dim=1)
