"""From checked runs to sbatch's command lines: `show` prints them, `submit` runs them.

No shell reads what a person typed: sbatch gets its options and the run's settings as a list of
arguments, and train.sbatch takes them as "$@"; paths of the environment go as variables.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_qwen3.config import Config, ConfigError

SCRIPT = "examples/slurm/train.sbatch"
_OPTIONS = ("nodes", "time", "partition", "account", "qos", "cpus_per_task")
_BEFORE = "BEFORE"  # stands for the number of a job that is not submitted yet
_VARIABLES = ("setup", "venv", "container", "runtime", "mounts", "restarts")


@dataclass(frozen=True)
class Run:
    """One job: what train.sbatch is called with, and the settings that this means."""

    arguments: tuple[str, ...]
    config: Config


def show(runs: list[Run], given: argparse.Namespace) -> None:
    """Print a shell script that submits the runs, and what SLURM says to the first of them."""
    prefix = "".join(f"{name}={shlex.quote(value)} " for name, value in _variables(given).items())
    for number, run in enumerate(runs, start=1):
        after = _BEFORE if number > 1 else given.after
        line = shlex.join(command(run, given, after))
        line = line.replace(f"afterok:{_BEFORE}", f'"afterok:$job{number - 1}"')
        print(f"mkdir -p {shlex.quote(str(run.config.run_dir))}")
        print(f"job{number}=$({prefix}{line})")
    if shutil.which("sbatch"):
        sbatch, *rest = command(runs[0], given, given.after)
        told = _call([sbatch, "--test-only", *rest], given)
        print(f"SLURM says: {told.stderr.strip()}", file=sys.stderr)


def submit(runs: list[Run], given: argparse.Namespace) -> None:
    """Submit the runs, each to start when the one before has ended well.

    ConfigError where SLURM refuses one; those before it are then taken back.
    """
    if not shutil.which("sbatch"):
        raise ConfigError("sbatch is not on PATH; --show prints the commands for where it is")
    jobs: list[str] = []
    for run in runs:
        run.config.run_dir.mkdir(parents=True, exist_ok=True)
        done = _call(command(run, given, jobs[-1] if jobs else given.after), given)
        if done.returncode:
            if jobs:
                subprocess.run(["scancel", *jobs], check=False)
            raise ConfigError(f"SLURM refuses {run.config.run_dir}: {done.stderr.strip()}")
        jobs.append(done.stdout.strip().partition(";")[0])  # number;cluster
        print(f"{jobs[-1]}  {run.config.run_dir}/slurm-{jobs[-1]}.out", flush=True)


def command(run: Run, given: argparse.Namespace, after: str = "") -> list[str]:
    """What submits a run; `after` is the job that must have ended well before it starts."""
    words = [f"--{name}={value}" for name, value in options(run, given, after).items() if value]
    return ["sbatch", "--parsable", *words, *given.sbatch, SCRIPT, *run.arguments]


def options(run: Run, given: argparse.Namespace, after: str = "") -> dict[str, str | int | None]:
    """sbatch's options by their long names; what has no value is left to train.sbatch."""
    folder = str(run.config.run_dir)
    passed_on = {name.replace("_", "-"): getattr(given, name) for name in _OPTIONS}
    return passed_on | {
        "job-name": f"{run.config.run.name}@{Path(run.config.run.dir).resolve()}",
        "output": f"{folder.replace('%', '%%')}/slurm-%j.out",
        "ntasks-per-node": given.gpus_per_node,
        "gpus-per-node": None if given.gres else given.gpus_per_node,
        "gres": None if given.gres == "none" else given.gres,
        "signal": f"B:USR1@{given.save_seconds}",
        "export": "ALL",  # a site may have another default
        # singleton: one job of this name at a time, so that no two write the same run.
        "dependency": f"singleton,afterok:{after}" if after else "singleton",
        # A stage after one that failed would wait for ever.
        "kill-on-invalid-dep": "yes",
    }


def _variables(given: argparse.Namespace) -> dict[str, str]:
    asked = {f"QWEN3_{name.upper()}": getattr(given, name) for name in _VARIABLES}
    return {name: str(value) for name, value in asked.items() if value is not None}


def _call(words: list[str], given: argparse.Namespace) -> subprocess.CompletedProcess[str]:
    environment = os.environ | _variables(given)
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
