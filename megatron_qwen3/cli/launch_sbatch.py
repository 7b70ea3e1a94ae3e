"""Makes sbatch's command lines of checked runs: `show` prints them, `submit` runs them.

No shell reads words that a person typed: sbatch gets its options and the run's settings as a list
of arguments, and the job's script takes them as "$@"; paths of the environment go as variables.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.modes import belongs
from megatron_qwen3.shown import shown, shown_lines

TRAIN, RL = "examples/slurm/train.sbatch", "examples/slurm/rl.sbatch"
_OPTIONS = ("nodes", "time", "partition", "account", "qos", "cpus_per_task")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_BEFORE = "BEFORE"  # stands for the number of a job that is not submitted yet
_VARIABLES = ("setup", "venv", "container", "runtime", "mounts", "restarts")
_VARIABLES += ("server_nodes", "node_servers")


@dataclass(frozen=True)
class Submission:
    """One job: the arguments of its script, and the settings that they give."""

    arguments: tuple[str, ...]
    config: Config

    @property
    def script(self) -> str:
        """The job's script: one of its own where the model samples answers."""
        return RL if belongs("rollouts", self.config.run.mode) else TRAIN


def show(runs: list[Submission], given: argparse.Namespace) -> None:
    """Print a shell script that submits the runs, and SLURM's answer to the first of them."""
    prefix = "".join(f"{name}={shlex.quote(value)} " for name, value in _variables(given).items())
    for number, run in enumerate(runs, start=1):
        after = _BEFORE if number > 1 else given.after
        line = shlex.join(command(run, given, after))
        line = line.replace(f"afterok:{_BEFORE}", f'"afterok:$job{number - 1}"')
        print(shown(f"mkdir -p {shlex.quote(str(run.config.run_dir))}"))
        print(shown(f"job{number}=$({prefix}{line})"))
    if shutil.which("sbatch"):
        print(
            shown_lines(f"SLURM says: {_foresight(runs[0], given).stderr.strip()}"), file=sys.stderr
        )


def submit(runs: list[Submission], given: argparse.Namespace) -> None:
    """Submit the runs, each to start when the one before has ended well.

    ConfigError where SLURM refuses one; those before it are then taken back.
    """
    if not shutil.which("sbatch"):
        raise ConfigError("sbatch is not on PATH; --show prints the commands for where it is")
    _check_with_slurm(runs[0], given)
    jobs: list[str] = []
    for run in runs:
        run.config.run_dir.mkdir(parents=True, exist_ok=True)
        done = _call(command(run, given, jobs[-1] if jobs else given.after), given)
        if done.returncode:
            if jobs:
                subprocess.run(["scancel", *jobs], check=False)
            raise ConfigError(f"SLURM refuses {run.config.run_dir}: {done.stderr.strip()}")
        jobs.append(done.stdout.strip().partition(";")[0])  # number;cluster
        print(shown(f"{jobs[-1]}  {run.config.run_dir}/slurm-{jobs[-1]}.out"), flush=True)


def _check_with_slurm(run: Submission, given: argparse.Namespace) -> None:
    """Raise ConfigError for a job that SLURM would queue and never start."""
    rows = subprocess.run(["sinfo", "-h", "-o", "%P %l"], capture_output=True, text=True).stdout
    for name, limit in map(str.split, rows.splitlines()):
        # The default partition is marked.
        if given.partition == name.rstrip("*") or (not given.partition and name.endswith("*")):
            most = parse_time(limit)
            if most and not 0 < parse_time(given.time) <= most:
                raise ConfigError(f"--time {given.time} exceeds {limit}, the most of {name}")
    foreseen = _foresight(run, given)
    if foreseen.returncode:
        raise ConfigError(
            f"SLURM could not start it: {foreseen.stderr.strip()}; look at sinfo, and where nodes "
            "are only down for now, the script that --show prints submits it all the same"
        )


def _foresight(run: Submission, given: argparse.Namespace) -> subprocess.CompletedProcess[str]:
    """When and where SLURM expects to start a run, or why it could not; nothing is submitted."""
    sbatch, *rest = command(run, given)
    return _call([sbatch, "--test-only", *rest], given)


def parse_time(text: str) -> int:
    """Seconds of M, M:S, H:M:S, D-H, D-H:M or D-H:M:S, and 0 of unlimited; else ConfigError."""
    if text.lower() in ("unlimited", "infinite"):
        return 0
    found = _TIME.fullmatch(text)
    if not found:
        raise ConfigError(
            f"--time {text} is not a time as SLURM writes it; valid: 90 (minutes), 12:00:00, "
            "2-12:00:00 (days-hours:minutes:seconds), unlimited"
        )
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part]
    if days is None and len(parts) < 3:
        parts.insert(0, 0)  # without days and seconds the first is minutes
    hours, minutes, seconds = parts + [0] * (3 - len(parts))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def command(run: Submission, given: argparse.Namespace, after: str = "") -> list[str]:
    """The command that submits a run; the job `after` must have ended well before it starts."""
    words = [f"--{name}={value}" for name, value in options(run, given, after).items() if value]
    return ["sbatch", "--parsable", *words, *given.sbatch, run.script, *run.arguments]


def options(
    run: Submission, given: argparse.Namespace, after: str = ""
) -> dict[str, str | int | None]:
    """sbatch's options by their long names; those without a value are left to the script."""
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
