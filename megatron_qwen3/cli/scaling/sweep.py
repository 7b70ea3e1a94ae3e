"""scaling_study.py sweep: train models on rising GPU counts and see how they scale.

A study file names models, layouts and GPU counts, for weak scaling (constant work per GPU) and
strong (constant work). Without --local the points that are not done yet become SLURM job arrays,
one per GPU count; --submit hands them to sbatch (not twice: it does not see jobs that wait in the
queue). With --local they run here, one after the other, with gloo ranks where there is no GPU.
Finished points are not run again, so a study may be interrupted and called again. All of them are
reported: efficiency curves, a law through each, and for hardware that the study names the
planner's prediction and the cost per token.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_qwen3 import tables
from megatron_qwen3.cli import grammar
from megatron_qwen3.config import ConfigError
from megatron_qwen3.pages import sweep_rows
from megatron_qwen3.shown import as_json, plain, shown
from megatron_qwen3.storage.whole import write_whole

if TYPE_CHECKING:
    from megatron_qwen3.studies.sweep import Case, Sweep

_EXAMPLES = """examples:
  bash examples/quickstart/data.sh runs/studies/data 512 examples/quickstart/studies.toml
  mq3 study sweep examples/studies/sweep_cpu.toml --local

  # on a cluster: look at the arrays, submit them, and later report on finished points
  mq3 study sweep examples/studies/sweep_h100.toml
  mq3 study sweep examples/studies/sweep_h100.toml --submit
  mq3 study sweep examples/studies/sweep_h100.toml --report
"""


def add_parser(commands: Any) -> None:
    """Add the command to the sub-parsers `commands`."""
    parser = commands.add_parser(
        "sweep",
        help="weak and strong scaling of models and layouts",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument("study", type=Path, metavar="STUDY.toml")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--local", action="store_true", help="run the points on this machine")
    how.add_argument("--submit", action="store_true", help="hand the job arrays to sbatch")
    how.add_argument("--report", action="store_true", help="only report on finished points")
    grammar.add_minutes(parser.add_argument, default=60)
    text = "page to write (default: {dir}/scaling.html)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """The exit status: 1 where a point failed."""
    from megatron_qwen3.studies import local
    from megatron_qwen3.studies.files import read
    from megatron_qwen3.studies.sweep import Sweep, plan

    sweep = read(given.study, Sweep)
    out = given.out or Path(sweep.dir) / "scaling.html"
    if out.suffix != ".html":
        raise ConfigError(f"--out {out}: the name of a page ends in .html")
    cases, left_out = plan(sweep)
    for reason in left_out:
        print(shown(f"left out: {reason}"), file=sys.stderr)
    failed = []
    if given.local:
        _note_machine(Path(sweep.dir))
        points = list({case.point.name: case.point for case in cases}.values())
        failed = local.run_all(sorted(points, key=lambda point: point.work), "sweep")
    elif not given.report:
        _arrays(given, sweep, cases)
    _report(given, sweep, cases, left_out, out)
    return 1 if failed else 0


def _arrays(given: argparse.Namespace, sweep: "Sweep", cases: Sequence["Case"]) -> None:
    from megatron_qwen3.studies import slurm
    from megatron_qwen3.studies.sweep import predictor

    points = [case.point for case in cases]
    if predict := predictor(sweep):
        left = {case.point.name: case for case in cases if not case.point.is_done}.values()
        hours = sum(case.gpus * sweep.steps * predict(case) for case in left) / 3600
        print(f"{len(left)} points are left, about {hours:.3g} GPU hours of steps", file=sys.stderr)
    folder, per_node = Path(sweep.dir), sweep.gpus_per_node
    for script in slurm.write(folder, points, per_node, given.minutes, sweep.sbatch):
        if given.submit:
            slurm.submit(script)
        else:
            print(shown(f"sbatch {script}"), file=sys.stderr)


def _report(
    given: argparse.Namespace,
    sweep: "Sweep",
    cases: Sequence["Case"],
    left_out: Sequence[str],
    out: Path,
) -> None:
    from megatron_qwen3.studies import efficiency
    from megatron_qwen3.studies.sweep import predictor

    curves = efficiency.read(cases, sweep.warm_up_steps, sweep.price_per_gpu_hour, predictor(sweep))
    machine = _machine(Path(sweep.dir))
    if given.json:
        print(as_json(sweep_rows.as_dict(curves, left_out, machine)))
    if not curves:
        print("no point is done yet: nothing to report", file=sys.stderr)
        return
    if not given.json:
        console = tables.console()
        for table in sweep_rows.terminal(curves):
            console.print(table)
        for line in sweep_rows.machine_lines(machine, curves):
            console.print(plain(line), markup=False)
    from megatron_qwen3.pages.sweep import write  # matplotlib loads slowly

    write(curves, left_out, machine, out)
    print(shown(f"wrote {out}, pictures in {out.with_suffix('')}"), file=sys.stderr)


def _note_machine(folder: Path) -> None:
    """Record the machine beside the runs: curves over more ranks than cores show the machine."""

    from megatron_qwen3.cores import cores

    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "cores": cores(),
        "processor": _processor(),
        "system": platform.platform(),
    }
    about["load"] = os.getloadavg()[0]  # others' work, before the first point runs
    write_whole(folder / "machine.json", [json.dumps(about).encode(), b"\n"])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _machine(folder: Path) -> dict[str, Any]:
    """{} where the runs were not made by --local."""
    path = folder / "machine.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
