"""Training steps of Qwen3's sizes, as many layers of each as fit: ours, and transformers'.

All sides of a size train the same layers on the same tokens, so their times compare. A model that
does not fit is cut: n of its N layers, and n/N of its vocabulary, so that the output layer has its
share of the work. The counted work is that of these layers (model/flops.py). The whole model would
train n/N of the tokens per second, were there room for it.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import train_step

from megatron_qwen3.config import load
from megatron_qwen3.model.flops import flops_per_token, parameter_count
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.presets import PRESETS
from megatron_qwen3.settings import Config
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.objectives import cross_entropy
from megatron_qwen3.training.optim import described
from on_gpu import ours
from on_gpu.cases import LeftOut, Options, Report

RATE = 1e-4
# Of a GPU's memory, by the planner: transformers' step keeps more, and has the same layers.
FILL = 0.65
_WARM_UP = 3  # the optimizer's state is made in the first, FP8's scales are in the second
_ROWS = 128  # of a vocabulary: products slow down where their sides are not aligned
_KERNELS = 15  # that a profile names


def ours_steps(
    options: Options,
    report: Report,
    shape: Mapping[str, Any],
    kind: str,
    recipe: str = "none",
    seconds: float = 8.0,
    profile: bool = False,
    graphs: Sequence[str] = (),
) -> None:
    """Steps of our engine: at least 3, at most as many as `seconds` hold; the middle counts.

    graphs: parts of layers that are replayed as CUDA graphs, captured after the warm-up.
    """
    config = _settings(options, shape, kind, recipe)
    config = replace(config, overlap=replace(config.overlap, cuda_graphs=tuple(graphs)))
    engine = ours.engine(config)
    report.note(optimizer=described(engine.optimizer))
    tokens = train_step.random_tokens(config)
    batch = TokenBatch.of(tokens[:, :-1], tokens[:, 1:])

    def step() -> float:
        return engine.train_step(batch, cross_entropy, RATE)["loss"]

    _measure(report, config, options, step, seconds)
    if graphs:
        ours.check_captured(engine, report)
    if options.device == "cuda":
        planned = Memory.of(Job.of(config, 1)).allocated
        peak = torch.cuda.max_memory_allocated()
        report.note(planned_bytes=planned, peak_bytes=peak, peak_to_planned=peak / planned)
    if profile:
        report.note(profile=_profile(options, step))


def transformers_steps(
    options: Options, report: Report, shape: Mapping[str, Any], seconds: float = 8.0
) -> None:
    """Steps of Hugging Face's model, with everything that it offers for speed."""
    try:
        import transformers
    except ImportError as error:
        raise LeftOut(f"transformers is not installed ({error})") from None
    config = _settings(options, shape, "torch", "none")
    ours.forget(options.device)
    report.note(optimizer="torch.optim.AdamW, fused", version=transformers.__version__)
    _measure(report, config, options, train_step.transformers(config), seconds)
    if options.device == "cuda":
        report.note(peak_bytes=torch.cuda.max_memory_allocated())


def _measure(
    report: Report, config: Config, options: Options, step: Callable[[], float], seconds: float
) -> None:
    """Losses must be finite; times are those of a step that ends with a number on the host."""
    losses = [step() for _ in range(1 if options.tiny else _WARM_UP)]
    spans: list[float] = []
    end = time.perf_counter() + (0.0 if options.tiny else seconds)
    while len(spans) < 3 or time.perf_counter() < end:
        begin = time.perf_counter()
        losses.append(step())
        spans.append(time.perf_counter() - begin)
    middle = statistics.median(spans)
    tokens = config.train.global_batch * config.data.sequence_length
    flops = tokens * flops_per_token(config.model, config.data.sequence_length)
    report.note(
        layers=config.model.num_layers,
        of_layers=PRESETS[config.model.preset]["num_layers"],
        vocabulary=config.model.vocab_size,
        parameters=parameter_count(config.model),
        rows=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        sequence_length=config.data.sequence_length,
        steps=len(spans),
        step_seconds=middle,
        fastest_seconds=min(spans),
        slowest_seconds=max(spans),
        tokens_per_second=tokens / middle,
        tflops=flops / middle / 1e12,
        losses=[losses[0], losses[-1]],
    )
    finite = all(abs(loss) < float("inf") for loss in losses)
    report.check("losses that are not finite", 0.0 if finite else 1.0, 0.0)


def _settings(options: Options, shape: Mapping[str, Any], kind: str, recipe: str) -> Config:
    """The run of a shape with the layers that fit; all kinds and recipes of it get the same."""
    values: dict[str, Any] = {
        "run.device": options.device,
        "train.precision": "bf16",
        "train.global_batch": shape["rows"],
        "train.micro_batch": shape["micro_batch"],
        "data.sequence_length": shape["length"],
        "data.sources": [],
        "train.steps": 1000,
        "model.preset": shape["preset"],
    }
    if options.tiny:
        values |= {"model.preset": shape["tiny"], "data.sequence_length": 32}
    if options.device == "cuda":
        plain = load([], [f"{name}={json.dumps(value)}" for name, value in values.items()])
        most = FILL * torch.cuda.get_device_properties(0).total_memory
        values |= slice_that_fits(plain, most)
    return ours.settings(options, values, kind, recipe)


def slice_that_fits(config: Config, most_bytes: float) -> dict[str, int]:
    """Settings of the largest part of a model that the planner says takes so much at most."""
    whole = config.model
    for layers in range(whole.num_layers, 0, -1):
        rows = whole.vocab_size * layers // whole.num_layers
        vocabulary = max(rows // _ROWS * _ROWS, _ROWS)
        part = replace(whole, num_layers=layers, vocab_size=vocabulary)
        if Memory.of(Job.of(replace(config, model=part), 1)).total <= most_bytes:
            return {"model.num_layers": layers, "model.vocab_size": vocabulary}
    raise LeftOut(f"not one layer fits into {most_bytes / 2**30:.0f} GiB")


def _profile(options: Options, step: Callable[[], float]) -> dict[str, Any]:
    """Of one step: the kernels that take longest, in ms, and how long any runs."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = options.device == "cuda"
    kind = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[kind]) as seen:
        step()
    times = {
        e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total
        for e in seen.key_averages()
    }
    longest = sorted(times.items(), key=lambda item: -item[1])[:_KERNELS]
    return {
        "all_ms": sum(times.values()) / 1e3,
        "kernels_ms": {name[:120]: round(spent / 1e3, 3) for name, spent in longest},
    }
