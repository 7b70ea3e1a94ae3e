"""The memory-bound steps of a Qwen3 layer: RMS norm, SwiGLU, rotary embedding.

On a CPU a step written as a chain of torch operations spends its time moving temporaries through
memory, and autograd keeps most of them until backward. Each function here is one autograd node
with its derivative written out: it saves only its inputs and works in place. It makes few passes
over whole tensors, since all threads synchronize after each. torch's fused kernels are used where
the device has them. All take any float dtype on any device; statistics are in float32 at least.

Attention is in `attention.py`.

Shapes: S sequence, B batch, N query heads, G key/value groups, D head size, H and F widths.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from megatron_qwen3.cpu import kernels
from megatron_qwen3.model.gate_and_up import cut

_BLOCK = 1 << 23  # numbers that `norm_gradient` copies to float32 at a time, 32 MiB per copy


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension, which is weight's [H].

    Computed in float32 and rounded to x's dtype once (arXiv 1910.07467, eq. 4).
    """
    if kernels.has_fused_norm(x):
        return F.rms_norm(x, weight.shape, weight, eps)
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps)
    return normalized(x, weight, eps)[0]


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up for [..., 2F] holding [gate; up] -> [..., F] (arXiv 2002.05202, eq. 6)."""
    return _SwiGLU.apply(gate_up) if torch.is_grad_enabled() else swiglu_value(gate_up)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate the half-split pairs (i, i + D/2) of q [S, B, N, D] and k [S, B, G, D].

    cos and sin are [S, 1 or B, 1, D] with equal halves (arXiv 2104.09864, eq. 34, Qwen3's pairs).
    The rotation is in float32 and its result rounded to q's dtype once; transformers rounds the
    tables and each product. The results lie in memory as [B, N, S, D]: attention kernels then read
    one head's positions next to each other.
    """
    return rotated(q, cos, sin), rotated(k, cos, sin)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, by_head: bool = True) -> Tensor:
    """`rope` of queries or keys alone, in memory by head as there, or in the order of the shape."""
    return (_Rotate.apply if torch.is_grad_enabled() else _rotated)(x, cos, sin, by_head)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def normalized(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`rms_norm` for use inside another function, and the factor of each row.

    weight may differ between rows: any shape that broadcasts with x. Fewer calls than torch makes.
    """
    wide = _wide(x)
    scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).mul_(weight).to(x.dtype), scale


class _RMSNorm(Function):
    """Saves x and one number per row."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        output, scale = normalized(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        grad_x = x.new_empty(x.shape)
        return grad_x, norm_gradient(x, weight, scale, grad, grad_x), None


def norm_gradient(x: Tensor, weight: Tensor, scale: Tensor, grad: Tensor, grad_x: Tensor) -> Tensor:
    """Writes the gradient of `normalized` by x to grad_x and returns that by weight.

    x is [..., H], weight [H] or, with x [..., J, H], [J, H]. With p = grad·x:
    d weight = Σ_rows scale·p; d x = scale·(grad·w) - x·scale³·(p·w)/H. A part of the first axis at
    a time: of a long row's queries and keys, four float32 copies would be most of a layer's memory.
    """
    rows = max(1, _BLOCK * len(x) // max(1, x.numel()))
    wide_weight, parts = _wide(weight), (each.split(rows) for each in (x, scale, grad, grad_x))
    of_blocks = [
        _norm_gradient(part, wide_weight, *rest) for part, *rest in zip(*parts, strict=True)
    ]
    return functools.reduce(torch.Tensor.add_, of_blocks).to(weight.dtype)


def _norm_gradient(
    x: Tensor, wide_weight: Tensor, scale: Tensor, grad: Tensor, grad_x: Tensor
) -> Tensor:
    wide_x, wide_grad = _wide(x), _wide(grad)
    product = wide_grad * wide_x
    if wide_weight.dim() == 1:
        rows = product.reshape(-1, x.shape[-1])
        shrink = (rows @ wide_weight).view(scale.shape)
        grad_weight = rows.t() @ scale.reshape(-1)
    else:
        shrink = (product * wide_weight).sum(-1, keepdim=True)
        grad_weight = product.mul_(scale).reshape(-1, *wide_weight.shape).sum(0)
    shrink.mul_(scale).mul_(scale).mul_(scale).div_(-x.shape[-1])
    torch.mul(wide_grad, wide_weight, out=product).mul_(scale)
    if grad_x.dtype == product.dtype:
        torch.addcmul(product, wide_x, shrink, out=grad_x)
    else:
        grad_x.copy_(product.addcmul_(wide_x, shrink))
    return grad_weight


class _SwiGLU(Function):
    """Saves only its input: silu(gate) is cheaper to compute again than to store."""

    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        return swiglu_value(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return swiglu_gradient(ctx.saved_tensors[0], grad)


def swiglu_value(gate_up: Tensor) -> Tensor:
    """`swiglu` for use inside another autograd function."""
    gate, up = cut(gate_up)
    return F.silu(gate).mul_(up)


def swiglu_gradient(gate_up: Tensor, grad: Tensor, silu: Tensor | None = None) -> Tensor:
    """Gradient of `swiglu` by its input: [..., 2F] from grad [..., F].

    silu: that of gate, where the caller has it; it is written over.
    """
    gate, up = cut(gate_up)
    gradient = gate_up.new_empty(gate_up.shape)
    grad_gate, grad_up = cut(gradient)
    work = F.silu(gate) if silu is None else silu
    torch.mul(work, grad, out=grad_up)
    torch.mul(grad, up, out=work)
    torch.ops.aten.silu_backward.grad_input(work, gate, grad_input=grad_gate)
    return gradient


class _Rotate(Function):
    """Saves only the tables: the inverse of a rotation is the rotation by the negative angle."""

    @staticmethod
    def forward(ctx, x, cos, sin, by_head):
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, by_head)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        out = grad.new_empty(grad.shape)
        return rotate(grad, *ctx.saved_tensors, -1, out=out), None, None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, by_head: bool) -> Tensor:
    """[S, B, N, D], that by head lies in memory as [B, N, S, D]."""
    S, B, N, D = x.shape
    out = x.new_empty(B, N, S, D).permute(2, 0, 1, 3) if by_head else x.new_empty(x.shape)
    return rotate(x, cos, sin, 1, out=out)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: int, out: Tensor) -> Tensor:
    """Writes x, turned by `direction` times the angle, to `out`, rounded to its dtype once."""
    wide = _wide(x)
    turned = out if out.dtype == wide.dtype else torch.empty_like(out, dtype=wide.dtype)
    cos, sin = cos.to(wide.dtype), sin.to(wide.dtype)
    first, second = wide.chunk(2, dim=-1)
    sin = sin[..., : first.shape[-1]]
    left, right = torch.mul(wide, cos, out=turned).chunk(2, dim=-1)
    left.addcmul_(second, sin, value=-direction)
    right.addcmul_(first, sin, value=direction)
    return out if turned is out else out.copy_(turned)
