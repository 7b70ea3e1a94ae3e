"""Transformer Engine's kernels for FP8, by torch: one scale per tensor, delayed or current.

See `te_kernels.py`. The values are those of FP8, rounded by torch's cast; products with them are
taken in float32.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformer_engine.pytorch.quantized_tensor import QuantizedTensorStorage
from transformer_engine.pytorch.tensor.float8_tensor import Float8Tensor
from transformer_engine.pytorch.tensor.storage.float8_tensor_storage import Float8TensorStorage

TORCH = {
    0: torch.uint8,
    2: torch.int32,
    4: torch.float32,
    5: torch.float16,
    6: torch.bfloat16,
    7: torch.float8_e4m3fn,
    8: torch.float8_e5m2,
}
"""torch's dtypes by the numbers of the enum DType."""


def plain(x: Any) -> Any:
    """A quantized tensor as float32; anything else as it is."""
    if not isinstance(x, QuantizedTensorStorage):
        return x
    if not isinstance(x, Float8TensorStorage):
        return x.dequantize()
    dtype = TORCH[int(x._fp8_dtype)]
    if x._data is not None:
        values = x._data.view(dtype).float()
    else:
        values = x._transpose.view(dtype).float().movedim(0, -1)
    return values * x._scale_inv.float()


def quantize(tensor, quantizer, output=None, noop=None):
    if quantizer is None:
        return tensor
    x = plain(tensor).detach().float()
    dtype = TORCH[int(quantizer.dtype)]
    most = torch.finfo(dtype).max
    scale = _scale(quantizer, x.abs().amax() if x.numel() else x.new_zeros(()), most)
    data = (x * scale).clamp(-most, most).to(dtype).view(torch.uint8)
    made = _quantized(quantizer, data, 1 / scale, tensor)
    return made if output is None else _copied(output, made)


def _scale(quantizer: Any, largest: Tensor, most: float) -> Tensor:
    """Delayed scaling notes the largest value for later steps; current scaling is by it."""
    kind = type(quantizer).__name__
    if kind == "Float8Quantizer":
        if quantizer.amax.numel():  # none where the scale is given
            kept = quantizer.amax
            kept.copy_(torch.maximum(kept, largest.reshape(kept.shape)))  # as atomicMax does
        return quantizer.scale.reshape(1).float()
    if kind != "Float8CurrentScalingQuantizer":
        raise NotImplementedError(f"{kind} is not stood in")
    if quantizer.with_amax_reduction and dist.is_initialized():
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=quantizer.amax_reduction_group)
    largest = largest.clamp(min=quantizer.amax_epsilon)
    scale = torch.where(largest > 0, most / largest, torch.ones(())).reshape(1)
    return torch.exp2(scale.log2().floor()) if quantizer.force_pow_2_scales else scale


def _quantized(quantizer: Any, data: Tensor, scale_inv: Tensor, like: Any) -> Any:
    transpose = None
    if quantizer.columnwise_usage:
        last = data.shape[-1]
        transpose = data.reshape(-1, last).t().contiguous().reshape(last, *data.shape[:-1])
    rows = data if quantizer.rowwise_usage or transpose is None else None
    common = {
        "fp8_scale_inv": scale_inv,
        "fp8_dtype": quantizer.dtype,
        "data_transpose": transpose,
        "quantizer": quantizer,
    }
    if quantizer.internal:
        return Float8TensorStorage(data=rows, fake_dtype=like.dtype, **common)
    return Float8Tensor(
        shape=like.shape,
        dtype=like.dtype,
        data=data if rows is None else rows,
        requires_grad=False,
        device=like.device,
        **common,
    )


def _copied(output: Any, made: Any) -> Any:
    """`made` in the tensors of `output`."""
    if output._data is not None and made._data is not None:
        output._data.copy_(made._data)
    if getattr(output, "_transpose", None) is not None and made._transpose is not None:
        output._transpose.copy_(made._transpose)
        output._transpose_invalid = False
    output._scale_inv.copy_(made._scale_inv)
    return output


def create_empty_quantized_tensor(quantizer, shape, dtype, device, pin_memory):
    return quantize(torch.zeros(tuple(shape), dtype=dtype, device=device), quantizer)


def dequantize(input, otype):
    return plain(input).to(TORCH[int(otype)])


def fp8_transpose(input, dtype, *, out=None):
    transposed = input.reshape(-1, input.shape[-1]).t().contiguous()
    return transposed if out is None else out.copy_(transposed.reshape(out.shape))


def split_quantize(tensor, split_sections, quantizer_list, disable_bulk_allocation=False):
    parts = torch.split(tensor, list(split_sections))
    return [quantize(x.contiguous(), q) for x, q in zip(parts, quantizer_list, strict=True)]


def bgrad_quantize(input, quantizer):
    bias_grad = input.float().sum(tuple(range(input.dim() - 1))).to(input.dtype)
    return [bias_grad, quantize(input, quantizer)]


def compute_amax(input, amax):
    amax.copy_(input.abs().max().float().reshape(amax.shape))


def fused_amax_and_scale_update_after_reduction(
    amax_reduction_buffer, amax_histories, scales, amax_compute_algo, fp8_dtype, margin
):
    """Each history takes this step's largest value; the next step's scale is by it."""
    most, start = torch.finfo(TORCH[int(fp8_dtype)]).max, 0
    for history, scale in zip(amax_histories, scales, strict=True):
        history[0].copy_(amax_reduction_buffer[start : start + scale.numel()])
        start += scale.numel()
        amax = history.max(0).values if amax_compute_algo == "max" else history[0].clone()
        if len(history) > 1:
            history.copy_(torch.roll(history, -1, 0))
        history[0].zero_()
        new = most / amax / 2.0**margin
        new = torch.where((amax > 0) & torch.isfinite(amax), new, scale)
        scale.copy_(new.clamp(max=torch.finfo(torch.float32).max))


def multi_tensor_compute_scale_and_scale_inv(
    chunk_size, noop_flag, tensor_lists, max_fp8, force_pow_2_scales, epsilon
):
    """Of each weight, by the largest value of all ranks' shares of it."""
    for amax, scale, scale_inv in zip(*tensor_lists, strict=True):
        largest = amax.clamp(min=epsilon)
        new = torch.where(largest > 0, max_fp8 / largest, torch.ones_like(largest))
        new = torch.exp2(new.log2().floor()) if force_pow_2_scales else new
        scale.copy_(new)
        scale_inv.copy_(1 / new)
