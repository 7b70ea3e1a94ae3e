"""scaling_study.py fit: set the planner's measured constants from published runs.

Fits them to every run that can be compared, prints how well these are met and writes
planner/calibration.toml. --leave-out then fits again without each source of runs, or each kind of
GPU, in turn and predicts what was left out: that error is what to expect of runs that nobody has
fitted. A fit takes some minutes of one core; one is made for each source or GPU.
"""

import argparse
from operator import attrgetter
from pathlib import Path
from typing import Any

from megatron_qwen3.cli.scaling.validate import print_groups
from megatron_qwen3.planner import accuracy, calibration, published
from megatron_qwen3.planner.fit import fit, left_out_in_turn
from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import shown

_LEFT_OUT = {"source": attrgetter("source"), "gpu": attrgetter("gpu")}


def add_parser(commands: Any) -> None:
    """Add the command to the sub-parsers `commands`."""
    parser = commands.add_parser(
        "fit",
        help="set the constants of the model of time from published runs",
        description=__doc__,
        epilog="examples:\n  python tools/scaling_study.py fit published_perf.csv\n"
        "  python tools/scaling_study.py fit published_perf.csv --leave-out source\n",
    )
    parser.add_argument("csv", type=Path, metavar="CSV", help="as validate takes it")
    parser.add_argument("--out", type=Path, default=calibration.PATH)
    parser.add_argument(
        "--leave-out",
        choices=[*_LEFT_OUT],
        help="predict each source's, or each GPU's, runs by constants fitted without them",
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Fit, write, and say how well; the exit status."""
    runs = [run for run in published.compared(published.read(given.csv)) if run.cluster]
    if not runs:
        raise ConfigError(f"{given.csv}: no run can be compared; validate says why of each")
    constants = fit(runs, report=_tell)
    calibration.write(constants, given.out)
    _tell(f"wrote {given.out}")
    found = accuracy.compare(runs, constants)
    print_groups("step time, by constants fitted to these runs", accuracy.groups(found))
    if given.leave_out:
        found = left_out_in_turn(runs, _LEFT_OUT[given.leave_out], _tell)
        title = f"step time, by constants fitted without their {given.leave_out}"
        print_groups(title, accuracy.groups(found))
    return 0


def _tell(line: str) -> None:
    print(shown(line), flush=True)
