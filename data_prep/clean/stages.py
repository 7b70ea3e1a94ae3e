"""The stages of a cleaning as datatrove pipelines, and running them: here, on SLURM, on Ray.

    files = find_files(settings)
    begin(settings, files)                         # plan.py
    stages(settings, input_bytes(files))           # each with name, pipeline, tasks
    run_local(settings, input_bytes(files), 2)     # returns when the result is whole
    run_slurm(settings, input_bytes(files), "cpu") # when jobs are queued, each after the last

label   read, normalise, language, quality, contamination; what duplicates are found by
pairs   candidates of each band, compared
groups  one task: what is a duplicate of what
write   documents/ without the duplicates
report  one task: report.json, report.png, the tables that a person reads

Executors differ only in where tasks run: tasks that were done are not done again, and a task that
died leaves nothing that another takes for whole. So what was interrupted is simply started again.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from data_prep.clean import files
from data_prep.clean.duplicates import FindPairs, GroupPairs, SignDocuments
from data_prep.clean.label import labelling
from data_prep.clean.read import ReadDocuments
from data_prep.clean.report import WriteReport
from data_prep.clean.settings import LOCK, CleanSettings
from data_prep.clean.write import WriteKept, WriteLabelled
from data_prep.lifetime import die_with_parent
from megatron_qwen3.config import ConfigError
from megatron_qwen3.processes import isolated
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.lock import shared

# One task sorts the keys of a band in memory: 16 bytes for each document. At about 2 KB of text a
# document, compressed to a third, this much input gives 200 million documents, or 3 GB.
_INPUT_BYTES_PER_PART = 1.3e11
_WATCH_SECONDS = 0.5
_worker = ExitStack()  # what a worker holds until it ends


class Stage(NamedTuple):
    """A pipeline, and into how many tasks it is divided."""

    name: str
    pipeline: list[PipelineStep]
    tasks: int


def stages(settings: CleanSettings, input_bytes: int) -> list[Stage]:
    """All stages in their order, each of which needs what the one before it wrote."""
    parts = math.ceil(max(1, input_bytes) / _INPUT_BYTES_PER_PART)
    pair_tasks = (settings.signatures.bands + 1) * parts
    label = [
        ReadDocuments(settings),
        *labelling(settings),
        SignDocuments(settings),
        WriteLabelled(settings),
    ]
    return [
        Stage("label", label, settings.tasks),
        Stage("pairs", [FindPairs(settings, parts)], pair_tasks),
        Stage("groups", [GroupPairs(settings, pair_tasks)], 1),
        Stage("write", [WriteKept(settings)], settings.tasks),
        Stage("report", [WriteReport(settings)], 1),
    ]


def run_local(settings: CleanSettings, input_bytes: int, workers: int) -> None:
    """All stages in processes of this machine, with a bar. The first error of a task is raised."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes share the cores, not threads
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])  # workers find everything imported
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        ProcessPoolExecutor(workers, processes, _begin_worker, (settings.out,)) as pool,
    ):
        try:
            for stage in stages(settings, input_bytes):
                total = max(1, input_bytes) if stage.name == "label" else stage.tasks
                _run_stage(stage, settings, pool, bar, total)
        except BaseException as error:
            for worker in multiprocessing.active_children():
                worker.kill()  # what it has not finished is done again
            if isinstance(error, BrokenProcessPool):
                raise ConfigError(
                    "a worker was killed, perhaps for want of memory: take fewer --workers or more "
                    "--tasks than now; the same command goes on"
                ) from None
            raise


def run_slurm(
    settings: CleanSettings,
    input_bytes: int,
    partition: str,
    hours: float = 24,
    memory_gb: int = 4,
    workers: int = -1,
    options: dict[str, str] | None = None,
) -> str:
    """Queue all stages, each after the one before it; the id of the last job.

    workers: tasks at a time, -1 for as many as fit; options: more of sbatch's, by their long names.
    """
    last = None
    for stage in stages(settings, input_bytes):
        last = SlurmPipelineExecutor(
            pipeline=stage.pipeline,
            tasks=stage.tasks,
            time=f"{int(hours)}:{int(hours * 60) % 60:02d}:00",
            partition=partition,
            mem_per_cpu_gb=memory_gb,
            workers=workers,
            job_name=f"clean-{stage.name}",
            qos="",
            sbatch_args=options or {},
            logging_dir=str(_logs(settings, stage)),
            depends=last,
            env_command=f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH "
            f"PYTHONPATH={shlex.quote(isolated()['PYTHONPATH'])} OMP_NUM_THREADS=1",
        )
    assert last is not None
    last.run()
    return str(last.job_id)


def run_ray(
    settings: CleanSettings, input_bytes: int, memory_gb: int = 4, workers: int = -1
) -> None:
    """All stages on the Ray cluster that RAY_ADDRESS names; returns when the result is whole."""
    try:
        import ray
    except ImportError:
        raise ConfigError("ray is not installed: python -m pip install ray") from None
    from datatrove.executor import RayPipelineExecutor

    path = isolated()["PYTHONPATH"]
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}})
    for stage in stages(settings, input_bytes):
        RayPipelineExecutor(
            pipeline=stage.pipeline,
            tasks=stage.tasks,
            workers=workers,
            mem_per_cpu_gb=memory_gb,
            logging_dir=str(_logs(settings, stage)),
        ).run()


class _Local(PipelineExecutor):  # type: ignore[misc]
    """datatrove's way to run tasks, in a pool that notices when a worker is killed.

    Its own LocalPipelineExecutor would wait for that worker's task for ever.
    """

    def __init__(self, stage: Stage, logs: Path) -> None:
        super().__init__(stage.pipeline, str(logs))
        self._tasks = stage.tasks

    @property
    def world_size(self) -> int:
        return self._tasks

    def get_distributed_env(self, node_rank: int = -1) -> Any:
        return LocalPipelineExecutor.get_distributed_env(self, node_rank)

    def run(self) -> None:
        for task in self.get_incomplete_ranks():
            self.run_task(task)

    def run_task(self, task: int) -> None:
        """Here and now. A copy is run: steps keep counts."""
        deepcopy(self)._run_for_rank(task)


def _run_stage(
    stage: Stage, settings: CleanSettings, pool: ProcessPoolExecutor, bar: Progress, total: int
) -> None:
    """The tasks of a stage that are still to be done. total: what `_measure` ends at."""
    done = _measure(stage, settings)
    row = bar.add_task(shown(f"{stage.name:8}"), total=total)
    executor = _Local(stage, _logs(settings, stage))
    executor.save_executor_as_json()
    waiting = {pool.submit(executor.run_task, task) for task in executor.get_incomplete_ranks()}
    while waiting:
        ended, waiting = wait(waiting, _WATCH_SECONDS, FIRST_EXCEPTION)
        for future in ended:
            future.result()
        bar.update(row, completed=done())
    bar.update(row, completed=total)


def _begin_worker(out: str) -> None:
    """The terminal is the bar's: a task's messages are in its log, its error goes to the caller.
    Nobody else begins in the folder as long as a worker is there."""
    die_with_parent()
    _worker.enter_context(shared(Path(out), LOCK))
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 -- for as long as the worker lives


def _measure(stage: Stage, settings: CleanSettings) -> Callable[[], int]:
    """What tells how far a stage is: bytes of the first one, tasks of the others."""
    if stage.name == "label":
        reports = settings.folder("work/progress") / stage.name
        return lambda: files.Progress.total(reports)
    completions = _logs(settings, stage) / "completions"
    return lambda: len(list(completions.glob("*")))


def _logs(settings: CleanSettings, stage: Stage) -> Path:
    return settings.folder("logs") / stage.name
