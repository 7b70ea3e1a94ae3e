"""CUDA graphs on a CPU: a capture is a list of torch's operations, and a replay runs them.

    graph = CUDAGraph()
    with Capture(graph):          # in the place of torch.cuda.graph
        y = f(x)                  # runs, which a real capture does not do
    x.copy_(other)
    graph.replay()                # y has f(other)

As in a real one every operation has the tensors, and so the memory, that it was captured with, and
every number stays the one that it was: a decision of Python's is taken once. Views are not
taken again, since they lie where they lay. A capture that waits for the device raises, as a real
one does. Not stood in: memory of graphs that others of their pool use again, and everything of
time.
"""

import contextlib
import functools
from collections import Counter
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

replays: Counter[str] = Counter()
"""How often graphs were replayed in this process, and how many operations they had together."""

# The host cannot know their result, or its shape, before the device has computed it, as of all that
# torch itself tags so; or copies from memory that is not pinned, which a capture cannot do either.
_WAIT = {
    "aten::_linalg_check_errors",
    "aten::equal",
    "aten::is_nonzero",
    "aten::lift_fresh",
    "aten::unique_dim_consecutive",
}
_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_INDEX = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# These give the host a tensor's memory, which on a CPU is none of torch's operations.
_READ = {"__array__", "__dlpack__", "cpu", "numpy", "to", "tolist"}
# Memory that is taken, which is the same in every replay, and keeps its old contents.
_NOTHING = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"}
_NOTHING |= {"aten::new_empty_strided"}
_kernels_running: list[str] = []
_captures: list["Capture"] = []


@contextlib.contextmanager
def kernel(name: str) -> Any:
    """Around a kernel that is stood in, whose steps on the host say nothing of the real one's."""
    _kernels_running.append(name)
    try:
        yield
    finally:
        _kernels_running.pop()


def wait(name: str) -> None:
    """Called by everything that waits for the device; within a capture it raises, as CUDA does."""
    if _captures and not _kernels_running:
        raise RuntimeError(f"{name} waits for the device, which is captured")


class DefaultGenerator:
    """In the place of the GPU's own: a graph can hold its states, which are generators."""

    def __init__(self) -> None:
        self.state = torch.Generator()
        self.get_state = torch.default_generator.get_state
        self.set_state = torch.default_generator.set_state

    def clone_state(self) -> torch.Generator:
        return torch.Generator()

    def graphsafe_get_state(self) -> torch.Generator:
        return self.state

    def graphsafe_set_state(self, state: torch.Generator) -> None:
        self.state = state

    def __getitem__(self, device: object) -> "DefaultGenerator":
        return self


class CUDAGraph:
    """In the place of torch.cuda.CUDAGraph."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.calls: list[tuple[Any, tuple, dict[str, Any], Any]] = []

    def replay(self) -> None:
        replays["graphs"] += 1
        replays["operations"] += len(self.calls)
        with torch.no_grad():
            for operation, args, kwargs, captured in self.calls:
                _put(operation(*args, **kwargs), captured)

    def reset(self) -> None:
        self.calls.clear()

    def register_generator_state(self, state: torch.Generator) -> None:
        """Nothing that is captured here draws numbers."""
        if not isinstance(state, torch.Generator):
            raise TypeError(f"a graph holds generators, not {type(state).__name__}")


class Capture(TorchDispatchMode):
    """In the place of torch.cuda.graph."""

    def __init__(self, graph: CUDAGraph, **_: Any) -> None:
        super().__init__()
        self.graph = graph
        self._told = mock.patch.multiple(torch.Tensor, **{name: _told(name) for name in _READ})

    def __enter__(self) -> Any:
        _captures.append(self)
        self._told.start()
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._told.stop()
        _captures.pop()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = operation._schema
        if _waits(operation, args, kwargs):
            wait(schema.name)
        made = operation(*args, **kwargs)
        if not _is_view(schema) and schema.name not in _NOTHING:
            self.graph.calls.append((operation, *tree_map(_its_memory, (args, kwargs, made))))
        return made


def _told(name: str) -> Any:
    """Tensor's method of that name, which waits where it gives the host a GPU's values."""
    method = getattr(torch.Tensor, name)

    @functools.wraps(method)
    def told(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # A device that is no text may stand for the GPU: on it are all tensors here.
        texts = [x for x in (*args, *kwargs.values()) if isinstance(x, str)]
        if name != "to" or "cpu" in texts:
            wait(f"Tensor.{name}")
        return method(tensor, *args, **kwargs)

    return told


def _waits(operation: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether the host would wait for a GPU's result of it, or for its shape.

    Who writes one number by a mask does not wait for it, but one of a GPU, which cannot be told
    apart here: `masked_fill_` says the same.
    """
    name = operation._schema.name
    if name in _INDEX:
        masks = (torch.bool, torch.uint8)
        return any(getattr(x, "dtype", None) in masks for x in tree_leaves(args[1]))
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None
    if name == "aten::histc":  # looks for the range where it is given none
        return len(args) < 4 or args[2] == args[3]
    return name in _WAIT or not _TAGS.isdisjoint(operation.tags)


def _its_memory(value: Any) -> Any:
    """A tensor that lies there also when who made the value has given its memory up."""
    return value.detach() if isinstance(value, torch.Tensor) else value


def _is_view(schema: Any) -> bool:
    aliases = [each.alias_info for each in schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _put(made: Any, captured: Any) -> None:
    """An operation's new result, where its old one lies; and waits for sent tensors."""
    for new, old in zip(tree_leaves(made), tree_leaves(captured), strict=True):
        if hasattr(new, "wait") and not isinstance(new, torch.Tensor):
            new.wait()
        elif isinstance(new, torch.Tensor) and new.data_ptr() != old.data_ptr():
            old.copy_(new)


def _waits_uncaptured(wait: Any) -> Any:
    """Gloo's reduce-scatter copies its result while it is waited for, out of memory of its own: who
    runs it again must wait again, and not copy the values that the first one left there."""

    def waited(work: Any, *args: Any) -> Any:
        with _disable_current_modes():
            return wait(work, *args)

    return waited


def install() -> None:
    """Have Transformer Engine, which is imported, capture by this."""
    from transformer_engine.pytorch import distributed, graph

    torch.distributed.Work.wait = _waits_uncaptured(torch.distributed.Work.wait)
    cuda: Any = torch.cuda
    cuda.CUDAGraph, cuda.graph = CUDAGraph, Capture
    graph.graph_pool_handle = lambda: (0, 0)
    graph.make_weak_ref = lambda x: x  # which looks at a CUDA tensor's memory
    distributed._lazy_init = lambda: None
    distributed._lazy_call = lambda call: call()
