"""Matrix products on a CPU, by the faster of the two libraries that torch carries.

torch.mm is MKL's, which on AMD's processors uses only vectors of 256 bits; oneDNN uses all 512
where the processor has them, and is twice as fast. Everywhere else, and for small products, whose
call costs more, torch's own choice is kept. The choice depends only on the processor and the
shapes: a run that is resumed on the same machine gets the same bits. QWEN3_ONEDNN=on or off in the
environment overrides the processor, so that tests can run as on another machine.

    output_RO = product(input_RI, weight_OI.t())
    write_product(gradient_OI, grad_RO.t(), input_RI, adds=True)

Legend: R rows, I inputs, O outputs.
"""

import functools
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_LEAST_MULTIPLICATIONS = 1 << 21  # a call of oneDNN costs 10 us more, the time of this many
# Measured with AVX-512: shapes of the result for which oneDNN keeps its pace.
_LONGEST_SUM, _TALL = 512, 8
_VARIABLE, _CHOICES = "QWEN3_ONEDNN", ("", "on", "off")
_torch_matmul = torch.matmul


@functools.cache
def onednn_is_faster() -> bool:
    """Whether large float32 products are left to oneDNN: an AMD processor with AVX-512.

    ValueError where QWEN3_ONEDNN is neither on nor off, or this torch has no oneDNN.
    """
    is_there = torch.backends.mkldnn.is_available()
    asked = os.environ.get(_VARIABLE, "")
    if asked not in _CHOICES or (asked == "on" and not is_there):
        valid = "on, off" if is_there else "off (this torch has no oneDNN)"
        raise ValueError(f"{_VARIABLE}={asked}: valid: {valid}, or nothing for the faster one")
    if asked or not is_there:
        return asked == "on"
    cpus = Path("/proc/cpuinfo")
    is_amd = cpus.exists() and "AuthenticAMD" in cpus.read_text()
    return is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [..., K] times b [K, N] -> [..., N], as torch.matmul; without autograd."""
    if not _is_onednns(a, b):
        return _torch_matmul(a, b)
    return _onednn(_dense(a), _dense(b))


def write_product(out: Tensor, a: Tensor, b: Tensor, adds: bool) -> None:
    """out = a · b, or out += a · b where `adds`: [M, N] from [M, K] and [K, N]."""
    if out.dtype == a.dtype and not _is_onednns(a, b):
        out.addmm_(a, b, beta=int(adds))
        return
    for summand in _summands(a, b):
        out.add_(summand) if adds else out.copy_(summand)
        adds = True


def grouped_product(rows_RI: Tensor, weight_EIO: Tensor, sizes: list[int]) -> Tensor:
    """[R, O]: each expert's rows, `sizes` of them in turn, times its matrix."""
    if _is_torchs_group(rows_RI, weight_EIO, max(sizes)):
        ends = torch.tensor(list(itertools.accumulate(sizes)), dtype=torch.int32)
        return F.grouped_mm(rows_RI, weight_EIO, offs=ends)
    output = rows_RI.new_empty(rows_RI.shape[0], weight_EIO.shape[2])
    for rows, weight, out in zip(
        rows_RI.split(sizes), weight_EIO, output.split(sizes), strict=True
    ):
        write_product(out, rows, weight, adds=False)
    return output


def _is_torchs_group(rows_RI: Tensor, weight_EIO: Tensor, largest: int) -> bool:
    """Whether to use torch's own loop over experts: MKL's products, except for odd strides."""
    _, inputs, outputs = weight_EIO.shape
    return (
        rows_RI.dtype == weight_EIO.dtype == torch.float32
        and rows_RI.device.type == "cpu"
        and inputs % 4 == outputs % 4 == 0  # it needs rows aligned to 16 bytes
        and rows_RI.data_ptr() % 16 == weight_EIO.data_ptr() % 16 == 0
        and (largest * inputs * outputs < _LEAST_MULTIPLICATIONS or not onednn_is_faster())
    )


def _summands(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Products that add up to a · b, each of a shape that suits oneDNN."""
    if not _is_onednns(a, b):
        yield a @ b
        return
    if a.shape[0] >= _TALL * b.shape[1]:
        yield product(b.t(), a.t()).t()
        return
    for left, right in zip(a.split(_LONGEST_SUM, dim=1), b.split(_LONGEST_SUM), strict=True):
        yield product(left, right)


def matmul(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """torch.matmul, by the faster library where autograd is off.

    Stands in for torch.matmul and Tensor.matmul while megatron-core runs on a CPU: its linears call
    them within their own autograd function.
    """
    if out is not None:
        return _torch_matmul(input, other, out=out)
    return _torch_matmul(input, other) if torch.is_grad_enabled() else product(input, other)


def _is_onednns(a: Tensor, b: Tensor) -> bool:
    return (
        b.dim() == 2
        and a.dim() >= 2
        and a.dtype == b.dtype == torch.float32
        and a.numel() * b.shape[1] >= _LEAST_MULTIPLICATIONS
        and a.device.type == b.device.type == "cpu"
        and onednn_is_faster()
    )


def _onednn(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")


def _dense(x: Tensor) -> Tensor:
    """x, copied if it is neither row- nor column-major: oneDNN has no fast code for others."""
    by_columns = x.dim() == 2 and x.t().is_contiguous()
    return x if x.is_contiguous() or by_columns else x.contiguous()
