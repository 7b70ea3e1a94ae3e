"""Checks before a run starts that it fits into memory, and names the nearest layout that does.

    text = memory_fault(config, world_size=256, device=Device("GPU", 80e9, is_gpu=True))
    python -m megatron_qwen3.planner.launch_check 256 "a GPU" 80e9 gpu < settings.toml

It takes milliseconds for a run that fits. Otherwise the text names the parts and the nearest layout
on as many ranks that fits. Training calls the command, so that its process never loads the planner.
"""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from megatron_qwen3 import config as settings
from megatron_qwen3 import entry
from megatron_qwen3 import validate as rules
from megatron_qwen3.modes import belongs
from megatron_qwen3.planner import candidates, hardware, moments, search
from megatron_qwen3.planner.job import RECOMPUTED, Job
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.planner.question import Question
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.settings_fp8 import ARITHMETIC
from megatron_qwen3.shown import shown
from megatron_qwen3.toml import emit

_LEAST_SHOWN = 0.01  # share of the memory below which a part is not named


class Device(NamedTuple):
    """A rank's device: its name in texts, its memory, and whether it is a GPU."""

    name: str
    bytes: float
    is_gpu: bool


def memory_fault(config: Config, world_size: int, device: Device) -> str:
    """Why the run does not fit, and a layout that does; "" where it fits."""
    job = Job.of(config, world_size)
    rank, found = moments.fullest(config, job, world_size, device.is_gpu)
    needed = sum(found.values())
    if needed <= device.bytes:
        return ""
    parts = sorted(found.items(), key=lambda item: -item[1])
    named = ", ".join(f"{name} {_gb(size)}" for name, size in parts if size > _LEAST_SHOWN * needed)
    beside = needed - _alone(job, device)  # the search of layouts for training leaves this out
    return (
        f"memory: pipeline rank {rank} needs about {_gb(needed)} GB of the "
        f"{_gb(device.bytes)} GB of {device.name} ({named}); "
        f"{_way_out(config, world_size, device, beside)}"
    )


def _alone(job: Job, device: Device) -> float:
    """Bytes that training needs without any other model."""
    memory = Memory.of(job)
    return memory.total if device.is_gpu else memory.allocated + moments.PROCESS_BYTES


def _way_out(config: Config, world_size: int, device: Device, beside: float) -> str:
    nearest = nearest_layout(config, world_size, device)
    if nearest:
        return f"nearest layout that fits: {' '.join(nearest)}"
    question = _question(config, world_size, device.bytes - beside)
    more = search.fewest_gpus(question)
    if more:
        return f"no layout on {world_size} ranks fits; doubling, {more[0]} is the first that does"
    smaller = "shorter sequences or a smaller model may"
    if belongs("rollouts", config.run.mode):
        smaller = f"fewer rollouts.rows, {smaller}"
    return f"no layout on {world_size} ranks fits; {smaller}"


def nearest_layout(config: Config, world_size: int, device: Device) -> list[str]:
    """The fewest key=value changes, the fastest of equally few, that make the run fit."""
    now = _sizes(Job.of(config, world_size)) | {"parallel.recompute": config.parallel.recompute}
    choices = []
    for job, recompute in _layouts(_question(config, world_size, device.bytes)):
        sizes = _sizes(job) | {"parallel.recompute": recompute}
        changes: dict[str, object]
        changes = {name: value for name, value in sizes.items() if value != now[name]}
        if config.parallel.pipeline_layers and {*changes} & {*_STAGES}:
            changes["parallel.pipeline_layers"] = []
        choices.append((len(changes), -job.micro_batch, job.layout.pipeline, job, changes))
    for *_, job, changes in sorted(choices, key=lambda choice: choice[:3]):
        _, parts = moments.fullest(config, job, world_size, device.is_gpu)
        if sum(parts.values()) <= device.bytes and not rules.faults(_changed(config, changes)):
            return [f"{name}={_plain(value)}" for name, value in changes.items()]
    return []


def _changed(config: Config, changes: Mapping[str, object]) -> Config:
    """The configuration with settings of its tables in place of others."""
    for name, value in changes.items():
        table, _, own = name.partition(".")
        value = tuple(value) if isinstance(value, list) else value
        part = dataclasses.replace(getattr(config, table), **{own: value})
        config = dataclasses.replace(config, **{table: part})
    return config


def _layouts(question: Question) -> Iterator[tuple[Job, str]]:
    """Layouts in which training alone seems to fit, even with more recomputation than needed."""
    for job, least in search.fitting(question):
        levels = [*RECOMPUTED]
        for recompute in levels[levels.index(least) :]:
            yield dataclasses.replace(job, recompute=RECOMPUTED[recompute]), recompute


_STAGES = ("parallel.pipeline", "parallel.virtual_pipeline")


def _sizes(job: Job) -> dict[str, int | str]:
    layout = job.layout
    return {
        "parallel.tensor": layout.tensor,
        "parallel.pipeline": layout.pipeline,
        "parallel.virtual_pipeline": layout.virtual,
        "parallel.expert": layout.expert,
        "parallel.expert_tensor": layout.expert_tensor,
        "parallel.context": layout.context,
        "train.micro_batch": job.micro_batch,
    }


def _question(config: Config, world_size: int, free_bytes: float) -> Question:
    """The question for our trainer, on GPUs with this much memory for it."""
    precision = ARITHMETIC.get(config.fp8.recipe, config.train.precision)
    gpu = hardware.load("b200" if precision in ("mxfp8", "nvfp4") else "h100")
    cluster = dataclasses.replace(gpu, memory_gb=free_bytes / 1e9)
    batch = config.step_rows
    if config.batch_updates:  # whose rows any number of ranks shares
        batch = -(-batch // world_size) * world_size
    return Question(
        model=config.model,
        cluster=cluster,
        gpus=world_size,
        sequence_length=config.data.sequence_length,
        global_batch=batch,
        precisions=(precision,),
        dispatchers=("alltoall",),
        fixed=_pinned(config),
        like=Job.of(config, world_size),
    )


def _pinned(config: Config) -> tuple[tuple[str, int | str], ...]:
    """Context ranks stay as they are: where ranks sample, which needs whole rows, where rows are
    too short for the search to vary them, and where Transformer Engine exchanges for them."""
    samples = belongs("rollouts", config.run.mode) and config.rollouts.engine == "own"
    is_ours = config.parallel.context_exchange == "own"
    if samples or not is_ours or config.data.sequence_length < candidates.LONG_SEQUENCE:
        return (("context", config.parallel.context),)
    return ()


def _plain(value: object) -> str:
    return value if isinstance(value, str) else emit(value)


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g}"


def main() -> int:
    """Print the fault of a run whose settings are on standard input, or nothing; the status."""
    parser = argparse.ArgumentParser(
        prog="python -m megatron_qwen3.planner.launch_check",
        description="Say in a line why a run does not fit into memory, and which layout would.",
        epilog='example: … launch_check 8 "a H100" 80e9 gpu < runs/stage_1/config.toml',
    )
    parser.add_argument("world_size", type=int, help="ranks of the run")
    parser.add_argument("name", help="name of the device of a rank, for the text")
    parser.add_argument("bytes", type=float, help="its memory")
    parser.add_argument("kind", choices=("gpu", "cpu"))
    given = parser.parse_args()
    device = Device(given.name, given.bytes, given.kind == "gpu")
    try:
        fault = memory_fault(settings.load(["/dev/stdin"]), given.world_size, device)
    except ConfigError as error:
        print(shown(f"error: {error}"), file=sys.stderr)
        return 2
    if fault:
        print(shown(fault))
    return 0


if __name__ == "__main__":
    entry.run(main, prints_results=True)
