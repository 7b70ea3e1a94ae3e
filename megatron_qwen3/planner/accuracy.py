"""Errors of predictions against published measurements, in groups.

comparisons = compare(published.read("published_perf.csv"), constants)
groups(comparisons)["all"].median
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.planner.published import PublishedRun
from megatron_qwen3.planner.step import Step


@dataclass(frozen=True)
class ComparedRun:
    """One published run beside its prediction; errors are predicted / published - 1."""

    run: PublishedRun
    step_seconds: float | None = None
    peak_bytes: float | None = None

    @property
    def error(self) -> float | None:
        """Error of the step time."""
        if self.step_seconds is None or not self.run.seconds:
            return None
        return self.step_seconds / self.run.seconds - 1

    @property
    def memory_error(self) -> float | None:
        """Error of the memory peak."""
        if self.peak_bytes is None or not self.run.peak_bytes:
            return None
        return self.peak_bytes / self.run.peak_bytes - 1


@dataclass(frozen=True)
class Errors:
    """Absolute errors of one group of runs."""

    count: int
    median: float
    p90: float


def compare(runs: Sequence[PublishedRun], constants: Mapping[str, float]) -> list[ComparedRun]:
    """Predict every run that is not left out."""
    return [_comparison(run, constants) for run in runs]


def _comparison(run: PublishedRun, constants: Mapping[str, float]) -> ComparedRun:
    if run.job is None:
        return ComparedRun(run)
    seconds = peak = None
    if run.seconds and run.cluster:
        seconds = Step.of(run.job, run.cluster, constants).seconds
    if run.peak_bytes:
        last = run.job.layout.pipeline - 1
        memory = Memory.of_rank(run.job, last) if run.on_last_rank else Memory.of(run.job)
        peak = memory.allocated
    return ComparedRun(run, seconds, peak)


def groups(comparisons: Sequence[ComparedRun], of_memory: bool = False) -> dict[str, Errors]:
    """Errors of all runs, of tuned ones, of Qwen3's, by model, GPU and precision."""
    found: dict[str, list[float]] = {}
    for one in comparisons:
        error = one.memory_error if of_memory else one.error
        if error is not None:
            for name in _group_names(one):
                found.setdefault(name, []).append(abs(error))
    return {
        name: Errors(len(errors), *map(float, np.quantile(errors, (0.5, 0.9))))
        for name, errors in found.items()
    }


def _group_names(one: ComparedRun) -> list[str]:
    run = one.run
    assert run.job is not None
    names = ["all"]
    if run.is_tuned:
        names.append("tuned")
    if run.is_tuned and run.job.model.name.startswith("qwen3"):
        names.append("Qwen3, tuned")
        if run.cluster:
            names.append(f"Qwen3, tuned, {run.cluster.generation.capitalize()}")
    return [*names, f"model {run.job.model.name}", f"GPU {run.gpu}", f"precision {run.precision}"]


def sort_key(one: ComparedRun) -> tuple[str, str, str, str]:
    """Sort key that puts similar rows of a table together."""
    run = one.run
    name = run.job.model.name if run.job else run.model
    return (name, run.gpu, run.precision, run.row_id)
