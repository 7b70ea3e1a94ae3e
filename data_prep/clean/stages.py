"""Runs the stages of a cleaning as datatrove pipelines: here, on SLURM, on Ray.

    files = find_files(settings)
    begin(settings, files)                         # plan.py
    stages(settings, input_bytes(files))           # each with name, pipeline, tasks
    run_local(settings, input_bytes(files), 2)     # returns when the result is whole
    run_slurm(settings, input_bytes(files), "cpu", {"": 24}, {"": 4})  # when jobs are queued

label   read, normalise, language, quality, contamination; signatures for duplicates
equal   exact copies, over all tasks
bands   the keys of other documents, sorted
pairs   documents that share a key of a band, over all tasks
lend    the signature of one of a pair, for the task of the other
compare pairs by their signatures
groups  one task: groups of duplicates, and the kept one of each
columns one task, of Parquet alone: which fields there are
write   documents/ without the duplicates
report  one task: report.json, report.png, the tables that a person reads

Executors differ only in where tasks run: tasks that were done are not done again, and a task that
died leaves nothing that another takes for whole. So interrupted work is simply started again.
Where a task is started twice at once, as by a queue that takes a node for dead, the second copy
waits for the first and finds it done; where the file system knows no locks both write whole files.
"""

import hashlib
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from datatrove.executor import (
    LocalPipelineExecutor,
    RayPipelineExecutor,
    SlurmPipelineExecutor,
)
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep

from data_prep.clean.dedup.equal import FindEqual
from data_prep.clean.dedup.groups import GroupPairs
from data_prep.clean.dedup.numbering import earlier_documents
from data_prep.clean.dedup.pairs import ComparePairs, FindPairs, LendSignatures
from data_prep.clean.dedup.sign import SignDocuments, SortBands
from data_prep.clean.label import labelling
from data_prep.clean.read import ReadDocuments
from data_prep.clean.report import WriteReport
from data_prep.clean.result import MergeFields
from data_prep.clean.settings import LOCK, PARQUET, REPORT, CleanSettings
from data_prep.clean.write import WriteKept, WriteLabelled
from data_prep.pool import Pool, Tick, unheard
from megatron_qwen3.bar import Bar, in_megabytes, in_numbers
from megatron_qwen3.config import ConfigError
from megatron_qwen3.processes import isolated
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.lock import alone, shared

_BYTES_PER_DOCUMENT = 650  # some 2 KB of text, compressed to a third
_DOCUMENTS_PER_PART = 500_000_000  # some minutes of a task that finds pairs
# fmt: off
STAGES = (
    "label", "equal", "bands", "pairs", "lend", "compare", "groups", "columns", "write", "report",
)
# fmt: on


class CleaningStage(NamedTuple):
    """A pipeline, and into how many tasks it is divided."""

    name: str
    pipeline: list[PipelineStep]
    tasks: int


def stages(settings: CleanSettings, input_bytes: int) -> list[CleaningStage]:
    """All stages in their order, each of which needs the files of the one before it."""
    earlier_tasks, earlier = earlier_documents(settings)
    documents = max(1, input_bytes / _BYTES_PER_DOCUMENT + earlier)
    parts = 1 << max(0, math.ceil(math.log2(documents / _DOCUMENTS_PER_PART)))
    pair_tasks = settings.signatures.bands * parts
    label = [
        ReadDocuments(settings),
        *labelling(settings),
        SignDocuments(settings),
        WriteLabelled(settings),
    ]
    near = [
        CleaningStage("bands", [SortBands(settings, parts)], settings.tasks),
        CleaningStage("pairs", [FindPairs(settings, parts)], pair_tasks),
        CleaningStage(
            "lend", [LendSignatures(settings, pair_tasks)], earlier_tasks + settings.tasks
        ),
        CleaningStage("compare", [ComparePairs(settings)], settings.tasks),
        CleaningStage("groups", [GroupPairs(settings)], 1),
    ]
    columns = [CleaningStage("columns", [MergeFields(settings)], 1)]
    return [
        CleaningStage("label", label, settings.tasks),
        CleaningStage("equal", [FindEqual(settings, parts)], parts),
        *(near if settings.similarity <= 1 else ()),
        *(columns if settings.format == PARQUET else ()),
        CleaningStage("write", [WriteKept(settings, parts)], settings.tasks),
        CleaningStage("report", [WriteReport(settings)], 1),
    ]


def is_done(settings: CleanSettings) -> bool:
    """Whether the result is whole; intermediate files of a whole one are removed."""
    if not settings.folder(REPORT).exists():
        return False
    shutil.rmtree(settings.folder("work"), ignore_errors=True)
    return True


def run_local(settings: CleanSettings, input_bytes: int, workers: int) -> None:
    """All stages in processes of this machine, with bars. The first error of a task is raised."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes share the cores, not threads
    with Pool(workers, settings, __name__) as pool:
        for stage in stages(settings, input_bytes):
            _run_stage(stage, settings, pool, input_bytes if stage.name == "label" else 0)


def run_slurm(
    settings: CleanSettings,
    input_bytes: int,
    partition: str,
    hours: Mapping[str, float],
    memory_gb: Mapping[str, float],
    workers: int = -1,
    options: dict[str, str] | None = None,
) -> str:
    """Queue all stages, each after the one before it; the id of the last job.

    hours, memory_gb: of a task, by stages' names, "" for the others; workers: tasks at a time, -1
    for as many as fit; options: more of sbatch's, by their long names. ConfigError where jobs of an
    earlier call are still queued or at work.
    """
    listed = stages(settings, input_bytes)
    check_queue(settings, listed)
    last = None
    for stage in listed:
        time = hours.get(stage.name, hours[""])
        last = _Slurm(
            pipeline=stage.pipeline,
            tasks=stage.tasks,
            time=f"{int(time)}:{int(time * 60) % 60:02d}:00",
            partition=partition,
            mem_per_cpu_gb=math.ceil(memory_gb.get(stage.name, memory_gb[""])),
            workers=workers,
            job_name=_job_name(settings, stage),
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


def _job_name(settings: CleanSettings, stage: CleaningStage) -> str:
    """The same for all jobs of a stage in a folder, and for no other folder's."""
    folder = hashlib.blake2b(os.fsencode(Path(settings.out).resolve()), digest_size=4)
    return f"clean-{stage.name}-{folder.hexdigest()}"


def check_queue(settings: CleanSettings, listed: list[CleaningStage]) -> None:
    """Raise ConfigError where jobs of this folder are queued or at work; cancel those that wait for
    failed ones, and would wait for ever."""
    names = ",".join(_job_name(settings, stage) for stage in listed)
    asked = ("squeue", "--noheader", f"--name={names}", "--format=%F %r")
    try:
        rows = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    except FileNotFoundError:
        raise ConfigError(
            "--slurm: there is no squeue here; is this a node of a cluster?"
        ) from None
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"--slurm: squeue says: {shown(error.stderr.strip())}") from None
    jobs = {job: reason for job, _, reason in (row.partition(" ") for row in rows)}
    dead = [job for job, reason in jobs.items() if reason == "DependencyNeverSatisfied"]
    if alive := sorted(jobs.keys() - set(dead), key=int):
        raise ConfigError(
            f"{settings.out}: jobs {', '.join(alive)} of this cleaning are queued or at work; wait "
            f"for them, or: scancel {' '.join(alive)}"
        )
    if dead:
        subprocess.run(["scancel", *dead], check=False)


def run_ray(
    settings: CleanSettings, input_bytes: int, memory_gb: Mapping[str, float], workers: int = -1
) -> None:
    """All stages on the Ray cluster that RAY_ADDRESS names; returns when the result is whole.

    memory_gb: of a task, by stages' names, "" for the others; workers: as in `run_slurm`.
    ConfigError at the end of a stage of which a task failed.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("ray is not installed: python -m pip install ray") from None

    path = isolated()["PYTHONPATH"]
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}})
    for stage in stages(settings, input_bytes):
        executor = _Ray(
            pipeline=stage.pipeline,
            tasks=stage.tasks,
            workers=workers,
            mem_per_cpu_gb=memory_gb.get(stage.name, memory_gb[""]),
            logging_dir=str(_logs(settings, stage)),
        )
        executor.run()
        if failed := executor.get_incomplete_ranks():  # of which it says nothing but in its log
            raise ConfigError(
                f"{settings.out}: {len(failed)} of {stage.tasks} tasks of the stage {stage.name} "
                f"failed on Ray; {_logs(settings, stage)} says why; the same command goes on"
            )


@contextmanager
def _at_work(executor: PipelineExecutor, task: int) -> Iterator[None]:
    """The folder is in use, and nobody else does this task of this stage."""
    logs = Path(executor.logging_dir.path)
    with shared(logs.parents[1], LOCK), alone(logs / LOCK, task):
        yield


class _Slurm(SlurmPipelineExecutor):  # type: ignore[misc]
    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        with _at_work(self, rank):
            return super()._run_for_rank(rank, local_rank, node_rank)


class _Ray(RayPipelineExecutor):  # type: ignore[misc]
    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        with _at_work(self, rank):
            return super()._run_for_rank(rank, local_rank, node_rank)


class _Local(PipelineExecutor):  # type: ignore[misc]
    """datatrove's way to run tasks, in a pool that notices when a worker is killed.

    Its own LocalPipelineExecutor would wait for that worker's task for ever.
    """

    def __init__(self, stage: CleaningStage, logs: Path) -> None:
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

    def run_task(self, task: int, tick: Tick = unheard) -> None:
        """Here and now. A copy is run: steps keep counts. tick: told the bytes that are read."""
        copy = deepcopy(self)
        if isinstance(reader := copy.pipeline[0], ReadDocuments):
            reader.tick = tick
        with _at_work(copy, task):
            copy._run_for_rank(task)


def _run_stage(
    stage: CleaningStage, settings: CleanSettings, pool: Pool[Any], input_bytes: int
) -> None:
    """The tasks of a stage that are still to be done, with a bar: of tasks, or of so many bytes."""
    executor = _Local(stage, _logs(settings, stage))
    executor.save_executor_as_json()
    calls = [(executor, task) for task in executor.get_incomplete_ranks()]
    total, told = (input_bytes, in_megabytes) if input_bytes else (stage.tasks, in_numbers)
    with Bar(f"{stage.name:8}", total, told) as bar:
        bar.skip(total * (1 - len(calls) / stage.tasks))
        for _ in pool.run(_run_task, calls, bar.advance):
            bar.advance(0 if input_bytes else 1)


def _run_task(_: CleanSettings, executor: _Local, task: int, tick: Tick) -> None:
    """The terminal is the bar's: a task's messages are in its log, its error goes to the caller."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        executor.run_task(task, tick)


def _logs(settings: CleanSettings, stage: CleaningStage) -> Path:
    return settings.folder("logs") / stage.name
