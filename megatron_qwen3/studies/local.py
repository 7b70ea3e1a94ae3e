"""Runs the points of a study on this machine, one after the other, and shows the time left.

    failed = run_all(points, "ladder")
    failed = run_all(points, "proxies", at_once=2)      # where their speed is not measured

Each point is a training of its own, started as a person would start it: one rank plainly, several
under torchrun (gloo on a CPU). All ranks of a study have the threads of those of its largest point,
so that a rank is the same everywhere and efficiency compares like with like. Points that are done
are not run again, and one that was stopped goes on from its checkpoint, so that a study may be
interrupted at any time. A point is done when its metrics have all its steps; its output is in
launch.log in its run folder.
"""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import rich.console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from data_prep.lifetime import Stopped, ended_by_signals
from megatron_qwen3.bar import duration
from megatron_qwen3.config import Config, ConfigError, changes, load, to_toml
from megatron_qwen3.cores import cores
from megatron_qwen3.model.flops import flops_per_token
from megatron_qwen3.processes import isolated
from megatron_qwen3.shown import plain, shown
from megatron_qwen3.storage.folder import SETTINGS_FILE
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.training.history import RunHistory
from megatron_qwen3.training.metrics_file import ALL_SOURCES, FILE_NAME, read_rows

_POLL_SECONDS, _LOOK_SECONDS = 1.0, 0.05


@dataclass(frozen=True)
class Point:
    """One run of a study. `config` is validated, its run_dir the point's own."""

    config: Config
    ranks: int = 1

    @property
    def name(self) -> str:
        return self.config.run.name

    @property
    def work(self) -> float:
        """Floating point operations of the whole run."""
        per_token = flops_per_token(self.config.model, self.config.data.sequence_length)
        return per_token * self.config.step_tokens * self.config.steps

    @property
    def steps_done(self) -> int:
        path = self.config.run_dir / FILE_NAME
        if not path.is_file():
            return 0
        return max((row["step"] for row in read_rows(path) if row["kind"] == "train"), default=0)

    @property
    def is_done(self) -> bool:
        """All steps are in the metrics, and the last evaluation is, which is written after them."""
        if self.steps_done < self.config.steps:
            return False
        return not self.config.data.held_out or any(
            row["kind"] == "eval" and row["step"] == self.config.steps
            for row in read_rows(self.config.run_dir / FILE_NAME)
        )


def run_all(points: Sequence[Point], title: str, at_once: int = 1) -> list[Point]:
    """Run the unfinished points, `at_once` at a time; returns those that failed, after all were
    tried.

    ConfigError: a folder holds a run of other settings, or the trainer refuses the first point.
    Interrupted or told to end, it stops the ranks and says how to go on.
    """
    for point in points:
        _check_folder(point)
    ranks = at_once * max((point.ranks for point in points), default=1)
    failed = []
    try:
        with ended_by_signals(), _Progress(title, points, at_once) as progress:
            for point, status in _runs(progress, max(1, cores() // ranks)):
                if status:
                    failed.append(point)
                    _tell_failure(point, status, progress)
                progress.over(point, is_done=not status)
    except KeyboardInterrupt as stop:
        print("stopped; the same command goes on with the points left", file=sys.stderr)
        raise SystemExit(stop.exit_status if isinstance(stop, Stopped) else 130) from None
    return failed


def _check_folder(point: Point) -> None:
    """Raise ConfigError for a folder with metrics of other settings: it is not overwritten."""
    file = point.config.run_dir / SETTINGS_FILE
    if not (file.is_file() and (point.config.run_dir / FILE_NAME).is_file()):
        return
    for change in changes(load([file]), point.config):
        raise ConfigError(
            f"{file}: {change} in the study: this folder holds a run of other settings; "
            "delete it, or give the study another dir"
        )


def _runs(progress: "_Progress", threads: int) -> Iterator[tuple[Point, int]]:
    """Each point that is left when it is over, with its exit status. Ranks that are still there
    when nobody asks for the next are stopped."""
    waiting = list(progress.left)
    running: list[tuple[Point, subprocess.Popen[bytes]]] = []
    try:
        while waiting or running:
            while waiting and len(running) < progress.at_once:
                point = waiting.pop(0)
                running.append((point, _start(point, threads)))
            _wait([process for _, process in running])
            progress.running([point for point, _ in running])
            for one in [one for one in running if one[1].poll() is not None]:
                running.remove(one)
                yield one[0], one[1].returncode
    finally:
        for _, process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for _, process in running:
            process.wait()


def _start(point: Point, threads: int) -> "subprocess.Popen[bytes]":
    file = write_settings(point)
    with (point.config.run_dir / "launch.log").open("w", encoding="utf-8") as output:
        return subprocess.Popen(
            command(point, file),
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=_environment(threads),
            start_new_session=True,
        )


def _wait(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Until one is over, but not longer than the progress may stand still."""
    until = time.monotonic() + _POLL_SECONDS
    while time.monotonic() < until and all(process.poll() is None for process in processes):
        time.sleep(_LOOK_SECONDS)


def _tell_failure(point: Point, status: int, progress: "_Progress") -> None:
    """Raise the very first point's error as ConfigError: it is likely the same in all."""
    end = _end(point.config.run_dir / "launch.log")
    if not progress.done and end.startswith("error: "):
        raise ConfigError(f"{point.name}: {end.removeprefix('error: ')}")
    progress.say(f"{point.name} FAILED, exit status {status}: {end}")


def write_settings(point: Point) -> Path:
    """The file in the run folder that the trainer is started with."""
    folder = point.config.run_dir
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "study.toml"
    write_whole(file, [to_toml(point.config).encode()])
    return file


def command(point: Point, file: Path) -> list[str]:
    """The command that runs a point from its settings file."""
    train = ["-m", "megatron_qwen3.train", str(file)]
    python = [sys.executable, "-P"]
    if point.ranks == 1:
        return [*python, *train]
    ranks = f"--nproc-per-node={point.ranks}"
    return [*python, "-m", "torch.distributed.run", "--standalone", ranks, *train]


def _environment(threads: int) -> dict[str, str]:
    """Of this process, with the checkout's package first and the threads of a rank."""
    return {"OMP_NUM_THREADS": str(threads), **isolated()}


def _end(log: Path) -> str:
    """The line that names the error, or else the last one."""
    lines = [
        line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line
    ]
    told = [line for line in lines if line.startswith(("error: ", "stopped: "))]
    return (told or lines or ["no output"])[-1]


class _Progress:
    """A bar in a terminal, a line per finished point everywhere.

    The time left is that of the work left, at the median rate of the finished points, and of as
    many starts, each as long as the median one, shared by those that run at once.
    """

    def __init__(self, title: str, points: Sequence[Point], at_once: int) -> None:
        self.count, self.at_once = len(points), at_once
        self.left = [point for point in points if not point.is_done]
        self.done = [point for point in points if point.is_done]
        self.console = rich.console.Console(highlight=False, stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f}%", markup=False),
            TextColumn("{task.fields[now]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False, style="bold"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        total = sum(point.work for point in points)
        self.task = self.bar.add_task(shown(title), total=total, now="", left="")
        self.say(f"{title}: {self.count} points, {len(self.done)} of them done before")

    def __enter__(self) -> "_Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def say(self, line: str) -> None:
        self.console.print(plain(line), soft_wrap=True)

    def running(self, points: Sequence[Point]) -> None:
        """Show how far the points that run are."""
        if self.bar.disable:
            return  # nobody sees it, and metrics are long
        begun = sum(point.work * point.steps_done / point.config.steps for point in points)
        now = ", ".join(point.name for point in points)
        self.bar.update(self.task, completed=self._work_done() + begun, now=now)

    def over(self, point: Point, is_done: bool) -> None:
        """Show that a point is over, and how long the others will take."""
        self.left.remove(point)
        if is_done:
            self.done.append(point)
        left = f"left {duration(self._seconds_left())}"
        self.bar.update(self.task, completed=self._work_done(), now="", left=left)
        if not is_done:
            return
        run = RunHistory.read(point.config.run_dir)
        loss = run.held_out().get(ALL_SOURCES, {}).get("loss", run.column("loss")[-1])
        took = duration(float(run.column("step_seconds").sum()))
        place = f"{len(self.done):>{len(str(self.count))}}/{self.count}"
        self.say(f"{place}  {point.name}  loss {loss:.4f}  {took}  {left}")

    def _work_done(self) -> float:
        return sum(point.work for point in self.done)

    def _seconds_left(self) -> float | None:
        rates, starts = [], []
        for point in self.done:
            steps = float(RunHistory.read(point.config.run_dir).column("step_seconds").sum())
            rates.append(steps / point.work)
            starts.append(_wall_seconds(point) - steps)
        if not rates:
            return None
        start, rate = max(0.0, statistics.median(starts)), statistics.median(rates)
        return sum(start + rate * point.work for point in self.left) / self.at_once


def _wall_seconds(point: Point) -> float:
    """From the start of the run to its last line of output."""
    folder = point.config.run_dir
    started, ended = folder / "study.toml", folder / "launch.log"
    return ended.stat().st_mtime - started.stat().st_mtime
