"""Lets megatron-core run where torch sees no GPU.

megatron-core asks torch.cuda for its device, streams and random states. Where there is no GPU,
importing this module answers those calls with the CPU, once, for the whole process; where there
is one it does nothing. `parallel/mcore.py`, from which all others import megatron-core, imports
this one first. The few constructors that megatron-core calls with the literal "cuda" are wrapped
rather than watched by a TorchFunctionMode, which would tax every operation of the step.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._device

from megatron_qwen3.cpu import products, shortcuts

REDIRECTED = not torch.cuda.is_available()

# Constructors to which megatron-core passes device="cuda".
_CONSTRUCTORS = ("tensor", "empty", "zeros", "ones", "full", "arange", "empty_like", "zeros_like")


class _NoStream:
    """Stands in for a CUDA stream or event: on a CPU everything is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> "_NoStream":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def wait_stream(self, stream: object) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass

    def record(self, stream: object = None) -> None:
        pass

    def wait(self, stream: object = None) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _on_cpu(construct: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(construct)
    def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs["device"] = "cpu"
        return construct(*args, **kwargs)

    return wrapper


def _redirect_torch() -> None:
    # torch looks constructors up by identity where a default device is set, as transformers does
    # while it loads a model: it must have made its list before they are wrapped.
    torch.utils._device._device_constructors()
    for name in _CONSTRUCTORS:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign,assignment]
    torch.nn.Module.cuda = lambda self, *args: self  # type: ignore[method-assign,assignment]
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign]
    torch.matmul = torch.Tensor.matmul = products.matmul  # type: ignore[method-assign,assignment]
    cuda: Any = torch.cuda
    cuda.current_device = lambda: torch.device("cpu")
    cuda.Stream = cuda.Event = _NoStream
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.current_stream = cuda.default_stream = lambda *args: _NoStream()
    cuda.synchronize = cuda.empty_cache = lambda *args: None
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args: torch.set_rng_state(state)


def _import_megatron_uncompiled() -> None:
    """Import megatron-core with torch.compile as a no-op, and without Transformer Engine.

    megatron-core decorates its small fusions with torch.compile at import. On a CPU that would
    need a C++ compiler at run time and costs seconds of import; none of them is on our path.
    Where Transformer Engine is installed megatron-core takes its optimizer, which needs a GPU.
    """
    sys.modules.setdefault("transformer_engine", None)  # type: ignore[arg-type]
    shortcuts.provide_weight_gradient()
    compiled = torch.compile
    torch.compile = lambda function, *args, **kwargs: function  # type: ignore[assignment]
    try:
        import megatron.core.jit  # noqa: F401
        from megatron.core.tensor_parallel import random
    finally:
        torch.compile = compiled
    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    shortcuts.skip_lone_ranks()


@contextlib.contextmanager
def cuda_type_names() -> Iterator[None]:
    """Let tensors on the CPU, or without bytes on 'meta', name their type as CUDA tensors do.

    megatron-core's optimizers sort parameters by the string `param.type()` and refuse all except
    'torch.cuda.*'. To be used only while an optimizer is built. A no-op where there is a GPU.
    """
    if not REDIRECTED:
        yield
        return
    original = torch.Tensor.type

    def named(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        return f"torch.cuda.{result.split('.')[-1]}" if isinstance(result, str) else result

    torch.Tensor.type = named  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.Tensor.type = original  # type: ignore[method-assign]


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Build megatron-core's modules and ours with shapes but no bytes: torch's meta device."""
    if not REDIRECTED:
        raise RuntimeError('a dry run must not see a GPU: set CUDA_VISIBLE_DEVICES=""')
    cuda: Any = torch.cuda
    original = cuda.current_device
    cuda.current_device = lambda: torch.device("meta")
    try:
        with torch.device("meta"):
            yield
    finally:
        cuda.current_device = original


if REDIRECTED:
    _redirect_torch()
    _import_megatron_uncompiled()
