"""Transformer Engine's kernels for products, norms, softmax and Adam, by torch in float32.

Functions have the names and arguments of `transformer_engine_torch` (version 2.20); `stand_in.py`
puts them there. A product is op(B) · op(A), op(A) = Aᵀ where transA: 'TN' forward, 'NN' for the
gradient by the input, 'NT' for that by the weight.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.te.te_quantized import TORCH, plain, quantize


def generic_gemm(
    A,
    transA,
    B,
    transB,
    D,
    quantizer,
    output_dtype,
    bias,
    bias_type,
    gelu,
    gelu_in,
    grad,
    workspace,
    workspace_size,
    accumulate,
    use_split_accumulator,
    comm_overlap=None,
    comm_type=None,
    extra_output=None,
    bulk_overlap=False,
    alpha=1.0,
    beta=None,
):
    if comm_overlap is not None or gelu or bias is not None:
        raise NotImplementedError("products with communication, GELU or a bias are not stood in")
    product = _product(A, transA, B, transB)
    if D is not None:
        _write(D, product, accumulate)
        return D, None, None, extra_output
    dtype = A.dtype if output_dtype is None else TORCH[int(output_dtype)]
    product = product.to(dtype)
    if quantizer is not None:
        product = quantize(product, quantizer)
    return product, None, None, extra_output


def te_general_grouped_gemm(
    A,
    transA,
    B,
    transB,
    D,
    output_dtype,
    m_splits,
    bias,
    bias_type,
    single_output,
    pre_gelu_out,
    grad,
    workspace,
    workspace_size,
    accumulate,
    use_split_accumulator,
    math_sm_count,
):
    outputs = list(torch.split(D[0], list(m_splits))) if single_output else D
    for a, b, out in zip(A, B, outputs, strict=True):
        if not out.numel():
            continue
        if plain(a).numel() and plain(b).numel():
            _write(out, _product(a, transA, b, transB), accumulate)
        elif not accumulate:  # the gradient of an expert without rows
            out.zero_()
    return bias


def _product(A, transA, B, transB) -> Tensor:
    """Float32; leading axes of B stay where it is not transposed."""
    A, B = (plain(_dense(x)).float() for x in (A, B))
    A = A.reshape(-1, A.shape[-1])
    A = A.t() if transA else A
    if transB:
        return B.reshape(-1, B.shape[-1]).t() @ A
    return B @ A


def _dense(x):
    """The tensor, which a kernel reads from its first byte on, whatever its strides say.

    Quantized tensors lie as their quantizer made them, and have no strides.
    """
    if isinstance(x, Tensor) and not x.is_contiguous():
        raise ValueError(f"a kernel does not know the strides {x.stride()} of {tuple(x.shape)}")
    return x


def _write(out: Tensor, product: Tensor, accumulate: bool) -> None:
    product = product.reshape(out.shape).to(out.dtype)
    out.add_(product) if accumulate else out.copy_(product)


def rmsnorm_fwd(input, weight, eps, ln_out, quantizer, otype, sm_margin, zero_centered_gamma):
    x, scale = _dense(input).float(), weight.float() + int(zero_centered_gamma)
    r = (x.square().mean(-1) + eps).rsqrt()
    normed = (x * r[:, None] * scale).to(TORCH[int(otype)])
    if quantizer is not None:
        return [quantize(normed, quantizer, ln_out), None, r]
    return [normed if ln_out is None else ln_out.copy_(normed), None, r]


def rmsnorm_bwd(dz, x, rsigma, gamma, sm_margin, zero_centered_gamma):
    width, scale = x.shape[-1], gamma.float() + int(zero_centered_gamma)
    grad, r = _dense(dz).float().reshape(-1, width), rsigma.reshape(-1, 1)
    normed = _dense(x).float().reshape(-1, width) * r
    by_normed = grad * scale
    dx = r * (by_normed - normed * (by_normed * normed).mean(-1, keepdim=True))
    return [dx.reshape(x.shape).to(x.dtype), (grad * normed).sum(0).to(gamma.dtype)]


def swiglu(input, quantizer):
    gate, up = input.float().chunk(2, -1)
    return quantize((F.silu(gate) * up).to(input.dtype), quantizer)


def dswiglu(grad, fwd_input, quantizer):
    gate, up = fwd_input.float().chunk(2, -1)
    s, g = gate.sigmoid(), grad.float()
    by_gate, by_up = g * up * s * (1 + gate * (1 - s)), g * gate * s
    return quantize(torch.cat([by_gate, by_up], -1).to(grad.dtype), quantizer)


def fused_multi_row_padding(input, output, input_row_list, padded_input_row_list):
    start = begin = 0
    for rows, padded in zip(input_row_list, padded_input_row_list, strict=True):
        output[begin : begin + rows] = input[start : start + rows]
        output[begin + rows : begin + padded] = 0
        start, begin = start + rows, begin + padded


def fused_multi_row_unpadding(input, output, input_row_list, unpadded_input_row_list):
    start = begin = 0
    for padded, rows in zip(input_row_list, unpadded_input_row_list, strict=True):
        output[begin : begin + rows] = input[start : start + rows]
        start, begin = start + padded, begin + rows


def scaled_softmax_forward(input, scale):
    return _softmax(input, None, scale)


def scaled_masked_softmax_forward(input, mask, scale):
    return _softmax(input, mask, scale)


def scaled_upper_triang_masked_softmax_forward(input, scale):
    return scaled_aligned_causal_masked_softmax_forward(input, scale)


def scaled_aligned_causal_masked_softmax_forward(input, scale):
    queries, keys = input.shape[-2:]
    hidden = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    return _softmax(input, hidden, scale)


def _softmax(x: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    """`hidden`: True where a query does not see a key; one that sees none gets zeros."""
    scores = x.float() * scale
    if hidden is None:
        return scores.softmax(-1).to(x.dtype)
    weights = scores.masked_fill(hidden, -10000.0).softmax(-1)
    return weights.masked_fill(hidden.all(-1, keepdim=True), 0.0).to(x.dtype)


def scaled_softmax_backward(output_grads, softmax_results, scale_factor):
    grad, y = output_grads.float(), softmax_results.float()
    by_scores = y * (grad - (grad * y).sum(-1, keepdim=True))
    return (scale_factor * by_scores).to(output_grads.dtype)


def scaled_masked_softmax_backward(output_grads, softmax_results, scale_factor):
    return scaled_softmax_backward(output_grads, softmax_results, scale_factor)


def scaled_upper_triang_masked_softmax_backward(output_grads, softmax_results, scale_factor):
    return scaled_softmax_backward(output_grads, softmax_results, scale_factor)


def scaled_aligned_causal_masked_softmax_backward(output_grads, softmax_results, scale_factor):
    return scaled_softmax_backward(output_grads, softmax_results, scale_factor)


def multi_tensor_l2norm(chunk_size, noop_flag, tensor_lists, per_tensor=None):
    norms = torch.stack([x.float().norm() for x in tensor_lists[0]] or [torch.zeros(())])
    return norms.norm().reshape(1), norms if per_tensor else torch.empty(0)


def multi_tensor_scale(chunk_size, noop_flag, tensor_lists, scale):
    for source, target in zip(*tensor_lists, strict=True):
        target.copy_(source * scale)


def multi_tensor_adam(
    chunk_size,
    noop_flag,
    tensor_lists,
    lr,
    beta1,
    beta2,
    epsilon,
    step,
    mode,
    bias_correction,
    weight_decay,
):
    """Mode 1 decays weights as AdamW does, mode 0 by the gradient.

    Lists are of gradients, weights, both moments and, where the optimizer has them, float32
    weights, which are updated then.
    """
    first_by, second_by = 1.0, 1.0
    if bias_correction:
        first_by, second_by = 1 - beta1**step, 1 - beta2**step
    for gradient, weight, first, second, *main in zip(*tensor_lists, strict=True):
        g, w = gradient.float(), (main[0] if main else weight).float()
        if mode == 0:
            g = g + weight_decay * w
        m, v = first.float(), second.float()
        m = m * beta1 + (1 - beta1) * g
        v = v * beta2 + (1 - beta2) * g * g
        update = (m / first_by) / ((v / second_by).sqrt() + epsilon)
        if mode == 1:
            update = update + weight_decay * w
        for kept, value in ((first, m), (second, v), (weight, w - lr * update)):
            kept.copy_(value)
        for kept in main:
            kept.copy_(w - lr * update)
