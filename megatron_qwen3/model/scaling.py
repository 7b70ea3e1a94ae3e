"""Stores the scaling state of FP8's recipe `delayed` in checkpoints, as plain tensors.

    keep_plain(chunk)                       # once, when the chunk is made
    chunk.load_state_dict(taken(chunk, loaded))
    with untouched(chunks): …               # passes without training

Transformer Engine saves a module's scales, and the largest values that set them, as a pickle, which
can run any code when it is read: its newest releases refuse to read one, and so do we with foreign
checkpoints. Here they are named tensors, with their values at the moment of saving. Each expert has
its own, on whichever rank it lives. All other recipes compute scales from the present tensor, and
save nothing.

A checkpoint without them, or with another program's, leaves a module in its initial state, with an
empty history. So do histories of another length.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from megatron_qwen3.parallel.mcore import get_fp8_recipe

_SUFFIX: Final = "._extra_state"
_DIRECTIONS: Final = ("scaling_fwd", "scaling_bwd")


def keep_plain(chunk: nn.Module) -> None:
    """Let the modules of Transformer Engine give their extra state as plain tensors."""
    for module in filter(_is_theirs, chunk.modules()):
        if hasattr(module, "num_gemms"):
            module.get_extra_state = _nothing
            module._split_extra_state = partial(_of_each, module)
        else:
            module.get_extra_state = partial(_state, module)


def taken(chunk: nn.Module, loaded: Mapping[str, Any]) -> dict[str, Any]:
    """The other entries for a chunk; the scaling state goes into its modules at once."""
    states: dict[str, dict[int, Any]] = {}
    others, modules = dict(loaded), dict(chunk.named_modules())
    for name in loaded:
        path, suffix, expert = name.rpartition(_SUFFIX)
        if suffix and _is_theirs(modules.get(path)):
            states.setdefault(path, {})[int(expert or 0)] = others[name]
            others[name] = _nothing()
    if _is_delayed(chunk):
        for path, of_parts in states.items():
            parts = [of_parts[part] for part in sorted(of_parts)]
            if all(isinstance(part, dict) for part in parts):
                _make(modules[path], len(parts), chunk.config)
                _take(modules[path], parts)
    return others


@contextmanager
def untouched(chunks: Sequence[nn.Module]) -> Iterator[None]:
    """Within, passes set no scale: the next scale is set by training, as without these passes.

    Transformer Engine writes the largest values of every forward pass into a history's first row,
    and makes scales of them after a training pass.
    """
    before = {module: history[0].clone() for module, history in _forward_histories(chunks)}
    try:
        yield
    finally:
        for module, history in _forward_histories(chunks):
            history[0] = before.get(module, 0.0)


def _forward_histories(chunks: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, Tensor]]:
    for chunk in filter(_is_delayed, chunks):
        for module in filter(_is_theirs, chunk.modules()):
            for name, value in _tensors(module):
                if name == f"{_DIRECTIONS[0]}.amax_history":
                    yield module, value


def _is_delayed(chunk: Any) -> bool:
    return bool(chunk.config.fp8) and chunk.config.fp8_recipe == "delayed"


def _is_theirs(module: object) -> bool:
    """Whether a module is one of Transformer Engine's that scale; norms do not."""
    of_engine = (kind.__module__.startswith("transformer_engine.") for kind in type(module).__mro__)
    return hasattr(module, "fp8_meta") or any(of_engine)


def _nothing() -> Tensor:
    """Transformer Engine's value for no extra state."""
    return torch.empty(0, dtype=torch.uint8)


def _state(module: Any) -> Any:
    """A module's scales and histories, copied; nothing where it has none."""
    return _of_each(module)[0]


def _of_each(module: Any, _: object = None) -> list[Any]:
    """`_state` split by the module's matrices."""
    parts: list[Any] = [{} for _ in range(getattr(module, "num_gemms", 1))]
    for name, value in _tensors(module):
        for part, own in zip(parts, _by_matrix(module, value).unbind(-2), strict=True):
            part[name] = own.detach().to("cpu", copy=True)
    return [part or _nothing() for part in parts]


def _by_matrix(module: Any, value: Tensor) -> Tensor:
    """[…, matrices, tensors of each], the same memory.

    Those of a matrix stand side by side; in older releases those of a kind, as all inputs, do.
    """
    count = getattr(module, "num_gemms", 1)
    if count == 1 or hasattr(module, "_num_fp8_tensors_per_gemm"):
        return value.unflatten(-1, (count, -1))
    return value.unflatten(-1, (-1, count)).transpose(-1, -2)


def _tensors(module: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module by name; none before the first step."""
    for direction in _DIRECTIONS:
        state = getattr(module, "fp8_meta", {}).get(direction)
        if hasattr(state, "amax_history"):
            yield f"{direction}.scale", state.scale
            yield f"{direction}.amax_history", state.amax_history


def _make(module: Any, count: int, config: Any) -> None:
    """Scales and histories of a module that has not been called yet."""
    if not any(True for _ in _tensors(module)):
        recipe = get_fp8_recipe(config)
        module.fp8_meta |= {"num_gemms": count, "recipe": recipe}
        module.init_fp8_meta_tensors(recipe)


@torch.no_grad()
def _take(module: Any, parts: list[dict[str, Tensor]]) -> None:
    """Copy the parts into the module, if their sizes agree."""
    for name, value in _tensors(module):
        own = _by_matrix(module, value)
        saved = [part[name] for part in parts if name in part]
        shape = torch.Size((*own.shape[:-2], own.shape[-1]))
        if len(saved) == own.shape[-2] and all(part.shape == shape for part in saved):
            own.copy_(torch.stack(saved, -2))
