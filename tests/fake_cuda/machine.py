"""A machine that seems to have one GPU: shapes, types and devices of CUDA tensors, and no bytes.

    from machine import pretend_one_gpu, fake_gpu
    pretend_one_gpu()                   # before the package is imported
    with fake_gpu() as answers:         # tensors made in here are fake; operations check devices
        ...
    answers                             # Counter of "file.py:function" that waited for the device

torch's FakeTensorMode refuses the same as a GPU: operands on two devices, strides that a grouped
product cannot take. It needs a CUDA build of torch, and no driver. What a few of torch's own
bindings do before they reach it (a guard that opens the device) is done here by the operation
behind them. There is no backward pass: autograd asks the driver for streams.
"""

import contextlib
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ops = torch.ops.aten
GPU = torch.device("cuda", 0)
_PACKAGE = f"{Path(__file__).parents[2] / 'megatron_qwen3'}/"


class _Nothing:
    """A stream or an event."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def pretend_one_gpu() -> None:
    """Let torch.cuda answer as on a machine with one H100, for the rest of the process."""
    properties = types.SimpleNamespace(
        name="fake H100", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132
    )
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    cuda.get_device_capability = lambda *args: (9, 0)
    cuda.get_device_properties = lambda *args: properties
    cuda.get_device_name = lambda *args: properties.name
    cuda.Stream = cuda.Event = _Nothing
    cuda.current_stream = cuda.default_stream = lambda *args: _Nothing()
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.set_device = cuda.synchronize = cuda.manual_seed = lambda *args: None
    cuda.is_current_stream_capturing = lambda: False
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda *args, **kwargs: None
    fake_tensor.init_gpu_context = lambda device: None
    torch.nn.Module.to = _move  # type: ignore[method-assign,assignment]


@contextlib.contextmanager
def fake_gpu() -> Iterator[Counter[str]]:
    """Tensors that are made in here are fake; how often who waited for the device."""
    answers = _Answers()
    torch.Generator = _HostGenerator  # type: ignore[misc,assignment]
    try:
        with fake_tensor.FakeTensorMode(), answers, _Bindings():
            yield answers.waits
    finally:
        torch.Generator = _make_generator  # type: ignore[misc]


class _HostGenerator:
    """A generator of any device."""

    def __new__(cls, device: Any = None) -> Any:
        return _make_generator()


def _move(module: torch.nn.Module, device: Any) -> torch.nn.Module:
    """Module.to, without the swap of tensors that fake ones refuse."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.device != GPU:
                moved = torch.nn.Parameter(parameter.detach().to(GPU))
                moved.__dict__.update(parameter.__dict__)
                part._parameters[name] = moved
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(GPU)
    return module


class _Answers(TorchDispatchMode):
    """Counts who waits for the device. Numbers that only it could tell are 1.

    Counts of values are taken for the least that they can be.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is ops._local_scalar_dense.default:
            if args[0].device.type == "cuda":
                self.waits[_place()] += 1
            return 1.0 if args[0].dtype.is_floating_point else 1
        kwargs = kwargs or {}
        if _waits(func, args, kwargs):
            self.waits[_place()] += 1
        if func is ops.bincount.default:
            return args[0].new_empty((kwargs.get("minlength") or args[2],), dtype=torch.int64)
        return func(*args, **kwargs)


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a CUDA kernel of it, or its copy to the host, makes the host wait."""
    if not (args and isinstance(args[0], torch.Tensor) and args[0].device.type == "cuda"):
        return False
    if func.overloadpacket in (ops.to, ops._to_copy):
        device = kwargs.get("device")
        return device is not None and torch.device(device).type == "cpu"
    return func in _WAITING or (
        func is ops.repeat_interleave.Tensor and kwargs.get("output_size") is None
    )


_WAITING = {
    ops.bincount.default,
    ops.nonzero.default,
    ops.masked_select.default,
    ops._unique2.default,
    ops.is_nonzero.default,
}


def _place() -> str:
    frame = sys._getframe(1)
    while frame and not frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back  # type: ignore[assignment]
    name = frame.f_code.co_filename.removeprefix(_PACKAGE) if frame else "elsewhere"
    return f"{name}:{frame.f_code.co_name}" if frame else name


class _Bindings(TorchFunctionMode):
    """Bindings that would open the device, by the operations behind them; no autograd."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return _INSTEAD.get(func, func)(*args, **(kwargs or {}))


def _item_at(x: torch.Tensor, key: Any) -> torch.Tensor:
    """x[key]: numbers, slices, None, ... and tensors of indices."""
    keys = key if isinstance(key, tuple) else (key,)
    spread = [k is Ellipsis for k in keys]
    if any(spread):
        at, known = spread.index(True), sum(k is not None and k is not Ellipsis for k in keys)
        keys = (*keys[:at], *[slice(None)] * (x.dim() - known), *keys[at + 1 :])
    dimension, tensors = 0, []
    for k in keys:
        if k is None:
            x = x.unsqueeze(dimension)
        elif isinstance(k, slice):
            x = ops.slice.Tensor(x, dimension, k.start, k.stop, k.step or 1)
        elif isinstance(k, torch.Tensor):
            tensors += [None] * (dimension - len(tensors)) + [k]
        else:
            x, dimension = x.select(dimension, int(k)), dimension - 1
        dimension += 1
    return ops.index.Tensor(x, tensors) if tensors else x


def _set_item(x: torch.Tensor, key: Any, value: Any) -> None:
    if isinstance(key, torch.Tensor):
        ops.index_put_.default(x, [key], torch.as_tensor(value, dtype=x.dtype, device=x.device))
    elif isinstance(value, torch.Tensor):
        ops.copy_.default(_item_at(x, key), value)
    else:
        _item_at(x, key).fill_(value)


def _contiguous(x: torch.Tensor) -> torch.Tensor:
    if x.is_contiguous():
        return x
    return ops.clone.default(x, memory_format=torch.contiguous_format)


def _item(x: torch.Tensor) -> Any:
    return ops._local_scalar_dense.default(x.reshape(()))


def _list(x: torch.Tensor) -> Any:
    """One wait, however many numbers."""
    one = _item(ops.new_empty.default(x, []))
    for size in reversed(x.shape):
        one = [one] * size
    return one


def _tensor(data: Any, dtype: Any = None, device: Any = None, **_: Any) -> torch.Tensor:
    made = _make_tensor(data, dtype=dtype)
    return torch.empty(made.shape, dtype=made.dtype, device=GPU) if _is_gpu(device) else made


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


_make_tensor, _make_generator = torch.tensor, torch.Generator
_INSTEAD = {
    torch.tensor: _tensor,
    torch.Tensor.__getitem__: _item_at,
    torch.Tensor.__setitem__: _set_item,
    torch.Tensor.__invert__: ops.bitwise_not.default,
    torch.Tensor.contiguous: _contiguous,
    torch.Tensor.item: _item,
    torch.Tensor.tolist: _list,
    torch.Tensor.__int__: lambda x: int(_item(x)),
    torch.Tensor.__float__: lambda x: float(_item(x)),
    torch.Tensor.__bool__: lambda x: bool(_item(x)),
    torch.Tensor.__index__: lambda x: int(_item(x)),
    torch.Tensor.copy_: ops.copy_.default,
}
