"""scaling_study.py fit: set the planner's measured constants from published runs.

Fits them to every run that can be compared, prints how well these are met and writes
planner/calibration.toml. --leave-out then fits again without each source of runs, or each kind of
GPU, in turn and predicts the runs left out: that error is to be expected of runs that are not in
the fit. A fit takes some minutes of one core; one is made for each source or GPU.
"""

import argparse
import sys
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TextIO

from megatron_qwen3.cli.scaling.validate import groups_dict, print_groups
from megatron_qwen3.planner import accuracy, calibration, published
from megatron_qwen3.planner.fit import fit, left_out_in_turn
from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import as_json, shown
from megatron_qwen3.storage.folder import check_file

_LEFT_OUT = {"source": attrgetter("source"), "gpu": attrgetter("gpu")}

_EXAMPLES = """examples:
  mq3 study fit examples/planner/published_perf.csv
  mq3 study fit examples/planner/published_perf.csv --leave-out source
"""


def add_parser(commands: Any) -> None:
    """Add the command to the sub-parsers `commands`."""
    parser = commands.add_parser(
        "fit",
        help="set the constants of the model of time from published runs",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument("csv", type=Path, metavar="CSV", help="as validate takes it")
    parser.add_argument("--out", type=Path, default=calibration.PATH, metavar="FILE")
    parser.add_argument(
        "--leave-out",
        choices=[*_LEFT_OUT],
        help="predict each source's, or each GPU's, runs by constants fitted without them",
    )
    text = "print JSON; the fit's progress goes to standard error"
    parser.add_argument("--json", action="store_true", help=text)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Fit, write, and say how well; the exit status."""
    check_file("--out", given.out)
    runs = [run for run in published.compared(published.read(given.csv)) if run.cluster]
    if not runs:
        raise ConfigError(f"{given.csv}: no run can be compared; validate says why of each")
    tell = partial(_tell, sys.stderr if given.json else sys.stdout)
    constants = fit(runs, tell)
    calibration.write(constants, given.out)
    tell(f"wrote {given.out}")
    found = {"fitted to these runs": accuracy.groups(accuracy.compare(runs, constants))}
    if given.leave_out:
        left_out = left_out_in_turn(runs, _LEFT_OUT[given.leave_out], tell)
        found[f"fitted without their {given.leave_out}"] = accuracy.groups(left_out)
    if given.json:
        groups = {name: groups_dict(errors) for name, errors in found.items()}
        print(as_json({"constants": constants, "groups": groups}))
        return 0
    for name, errors in found.items():
        print_groups(f"step time, by constants {name}", errors)
    return 0


def _tell(stream: TextIO, line: str) -> None:
    print(shown(line), file=stream, flush=True)
