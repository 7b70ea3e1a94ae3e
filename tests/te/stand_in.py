"""Transformer Engine on a CPU: all of its Python, with its kernels stood in by torch.

    from tests.te import stand_in
    stand_in.install()                       # first of all: megatron-core looks for it at import
    from megatron_qwen3.cpu import redirect  # sees no GPU
    stand_in.pretend_one_gpu()               # modules of Transformer Engine can be made

Real are every module, quantizer, recipe, scaling history, padding and communication that it writes
in Python; stood in is its compiled module `transformer_engine_torch`: names and enums as api.json
has them from the real one, and the few kernels that a Qwen3 calls. A kernel that is not stood in
raises. A run on it proves how things are wired, laid out, padded and sent, never a kernel's
numbers or speed. For processes that do nothing else: torch answers differently in them.
"""

import contextlib
import enum
import functools
import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import os
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import torch

API: dict[str, Any] = json.loads(Path(__file__).with_name("api.json").read_text())
calls: Counter[str] = Counter()
"""How often each kernel was called in this process."""


def install() -> None:
    """Import Transformer Engine with `transformer_engine_torch` stood in.

    ImportError where its Python is not installed.
    """
    os.environ["NVTE_PROJECT_BUILDING"] = "1"  # its package loads no shared libraries then
    os.environ["NVTE_TORCH_COMPILE"] = "0"  # torch would compile for the GPU that is pretended
    sys.modules["transformer_engine_torch"] = _compiled_module()
    spec = importlib.util.find_spec("transformer_engine")
    if spec is None or spec.loader is None:
        raise ImportError("transformer_engine is not installed")
    package = importlib.util.module_from_spec(spec)
    sys.modules["transformer_engine"] = package
    # The package loads its compiled module as soon as it is imported; its part `common` can come
    # first, and be told not to.
    common: Any = importlib.import_module("transformer_engine.common")
    common.load_framework_extension = lambda framework: None
    _stand_in("machine", "attention")
    with _triton():
        spec.loader.exec_module(package)
        importlib.import_module("transformer_engine.pytorch")
    _stand_in("kernels", "quantized", "documents")  # they import Transformer Engine
    importlib.import_module("tests.te.te_graphs").install()


def pretend_one_gpu(capability: tuple[int, int] = (9, 0)) -> None:
    """Let torch answer as with one GPU, and Transformer Engine take CPU tensors for CUDA's.

    Tensors stay where the redirection of cpu/ puts them.
    """
    properties = types.SimpleNamespace(
        name="pretended GPU",
        major=capability[0],
        minor=capability[1],
        total_memory=80 << 30,
        multi_processor_count=132,
    )
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.get_device_capability = lambda *args: capability
    cuda.get_device_properties = lambda *args: properties
    cuda.get_device_name = lambda *args: properties.name
    cuda.Stream = cuda.Event = _Nothing
    cuda.current_stream = cuda.default_stream = lambda *args: _Nothing()
    cuda.is_current_stream_capturing = lambda: False
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *args: None
    graphs = importlib.import_module("tests.te.te_graphs")
    cuda.default_generators = graphs.DefaultGenerator()
    cuda.synchronize = lambda *args: graphs.wait("torch.cuda.synchronize")
    torch.Tensor.is_cuda = property(_is_cuda)  # type: ignore[method-assign,assignment]
    torch.Tensor.to = _to  # type: ignore[method-assign,assignment]


class _Nothing:
    """A stream or an event: on a CPU everything is already in order."""

    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def record_event(self, event: object = None) -> "_Nothing":
        return _Nothing()

    def synchronize(self) -> None:
        importlib.import_module("tests.te.te_graphs").wait("synchronize")

    def query(self) -> bool:
        importlib.import_module("tests.te.te_graphs").wait("query")
        return True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


_KNOW_CUDA_ALONE = ("transformer_engine.", "megatron.core.transformer.moe.")
_is_really_cuda = torch.Tensor.is_cuda.__get__  # type: ignore[attr-defined]


def _is_cuda(tensor: torch.Tensor) -> bool:
    """Give a false answer only to callers that know no other tensors."""
    asks = sys._getframe(1).f_globals.get("__name__", "")
    return asks.startswith(_KNOW_CUDA_ALONE) or _is_really_cuda(tensor)


_kernels: dict[str, Any] = {}


_really_to = torch.Tensor.to


def _to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """`Tensor.to`, for which "cuda" is the CPU, as for the constructors that cpu/ redirects."""
    if str(kwargs.get("device")).startswith("cuda"):
        kwargs["device"] = torch.device("cpu")
    elif args and str(args[0]).startswith("cuda"):
        args = (torch.device("cpu"), *args[1:])
    return _really_to(tensor, *args, **kwargs)


def _compiled_module() -> Any:
    """Names and enums of the real module; functions call their stand-ins."""
    tex: Any = types.ModuleType("transformer_engine_torch")
    for name, members in API["enums"].items():
        setattr(tex, name, enum.IntEnum(name, members))
    for name in API["classes"]:
        setattr(tex, name, type(name, (), {}))
    for name in API["functions"]:
        setattr(tex, name, functools.partial(_call, name))
    return tex


def _call(name: str, *args: Any, **kwargs: Any) -> Any:
    if name not in _kernels:
        raise NotImplementedError(f"transformer_engine_torch.{name} is not stood in")
    calls[name] += 1
    graphs = importlib.import_module("tests.te.te_graphs")
    with torch.no_grad(), graphs.kernel(name):  # a kernel is none of autograd's operations
        return _kernels[name](*args, **kwargs)


def _stand_in(*modules: str) -> None:
    """Kernels are their functions with names that the real module has."""
    for module in modules:
        for name, value in vars(importlib.import_module(f"tests.te.te_{module}")).items():
            if name in API["functions"] and inspect.isfunction(value):
                _kernels[name] = value


@contextlib.contextmanager
def _triton() -> Any:
    """Within, a triton whose kernels raise, where there is none: Transformer Engine imports it.

    megatron-core looks for the real one afterwards, and does without.
    """
    if importlib.util.find_spec("triton"):
        yield
        return
    for name in ("torch._dynamo", "torch._inductor.utils"):  # which look for it, too
        importlib.import_module(name)
    names = ("triton", "triton.language", "triton.language.core", "triton.language.standard")
    modules = {name: _Anything(name) for name in names}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


class _Anything(types.ModuleType):
    """A module whose every name is one of itself; as a decorator it leaves nothing to be called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.__path__: list[str] = []
        self.__version__ = "0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> "_Anything":
        return _Anything(self.__name__)

    def __getitem__(self, key: Any) -> Any:
        raise NotImplementedError(f"{self.__name__}: triton is not installed")
