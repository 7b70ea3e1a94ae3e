"""Whose AdamW megatron-core builds.

    with adam_of("torch"):
        optimizer = get_megatron_optimizer(...)

By itself megatron-core takes the first that it can import, of Transformer Engine, apex and torch,
also on a CPU, where the kernels of the first two are missing; there is no option for it.
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
    """Let what is built within be optim.adam's; "auto" is megatron-core's choice, on CPUs torch's.

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
