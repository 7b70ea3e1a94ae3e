"""Our engine in a process that runs one case after the other: `engine = ours.engine(config)`."""

import gc
import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from megatron_qwen3.config import load
from megatron_qwen3.parallel import runtime
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.training.engine import Engine
from on_gpu.cases import OF_A_GPU_ALONE, LeftOut, Options, Report


def settings(options: Options, values: Mapping[str, Any], kind: str, recipe: str) -> Config:
    """A run of one rank; LeftOut where kind te or an FP8 recipe cannot be had with its settings."""
    values = {"run.device": options.device, "run.dir": str(options.work), **values}
    values |= {"model.kind": "torch", "train.steps": 1000, "log.tensorboard": False}
    plain = load([], _pairs(values))
    if kind == "torch":
        return plain
    if options.device == "cpu" and recipe in OF_A_GPU_ALONE:
        raise LeftOut("a CPU has no kernels of it")
    try:
        more = {"model.kind": kind} | ({"fp8.recipe": recipe} if recipe != "none" else {})
        return load([], _pairs(values | more))
    except ConfigError as error:
        raise LeftOut(str(error)) from None


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


def engine(config: Config) -> Engine:
    """With fresh weights, in the memory that the one before has left; LeftOut as `settings`."""
    forget(config.run.device)
    try:
        return Engine(config, _joined(config))
    except ConfigError as error:
        if config.model.kind == "torch":
            raise
        raise LeftOut(str(error)) from None


def check_captured(engine: Engine, report: Report) -> None:
    """That graphs of what overlap.cuda_graphs names were captured: layers that never replay one
    pass every comparison with themselves."""
    for line in engine.graphs.news():
        report.note(captured=line)
    report.check("captured graphs that are missing", float(engine.graphs.count == 0), 0.0)


def _joined(config: Config) -> Layout:
    """The layout of this one rank, which joins its own group once."""
    if not dist.is_initialized():
        return runtime.start(config)
    layout = runtime.check(config)
    runtime.seed(config.run.seed)
    return layout


def forget(device: str) -> None:
    """Give back memory that nothing refers to any more, and count its peak anew."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
