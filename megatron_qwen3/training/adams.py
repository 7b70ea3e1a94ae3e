"""Selects the AdamW implementation that megatron-core builds.

    with adam_of("torch"):
        optimizer = get_megatron_optimizer(...)

By default megatron-core takes the first that it can import, of Transformer Engine, apex and torch,
even on a CPU, where the kernels of the first two do not run; it has no option for this.
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import torch

from megatron_qwen3.cpu import device
from megatron_qwen3.parallel.installed import PACKAGES
from megatron_qwen3.parallel.mcore import distrib_optimizer, optimizers


@contextlib.contextmanager
def adam_of(name: str) -> Iterator[None]:
    """Optimizers built within use optim.adam; "auto": megatron-core's choice, on CPUs torch's.

    ImportError where it is not installed.
    """
    if name == "auto" and not device.is_gpu():
        name = "torch"
    if name == "auto":
        yield
        return
    adam: Any = torch.optim.AdamW
    if name != "torch":
        package = PACKAGES[name]
        adam = getattr(importlib.import_module(package.module), package.attribute)
    values = [
        (optimizers, "Adam", adam),
        (optimizers, "USING_PYTORCH_OPTIMIZER", name == "torch"),
        (distrib_optimizer, "Adam", adam),
    ]
    before = [(module, key, getattr(module, key)) for module, key, _ in values]
    try:
        for module, key, value in values:
            setattr(module, key, value)
        yield
    finally:
        for module, key, value in before:
            setattr(module, key, value)
