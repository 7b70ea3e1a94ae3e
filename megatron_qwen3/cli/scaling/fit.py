"""scaling_study.py fit: set the planner's measured constants from published runs.

Fits on two thirds of the families of runs (chosen by a hash of model, GPU, precision and layout),
prints the error on both parts and writes planner/calibration.toml. Takes a few minutes.
"""

import argparse
from pathlib import Path
from typing import Any

from megatron_qwen3.planner import accuracy, calibration, published
from megatron_qwen3.planner.fit import fit, is_fitted
from megatron_qwen3.shown import shown


def add_parser(commands: Any) -> None:
    """Add the command to the sub-parsers `commands`."""
    parser = commands.add_parser(
        "fit",
        help="set the constants of the model of time from published runs",
        description=__doc__,
        epilog="example:\n  python tools/scaling_study.py fit published_perf.csv\n",
    )
    parser.add_argument("csv", type=Path, metavar="CSV", help="as validate takes it")
    parser.add_argument("--out", type=Path, default=calibration.PATH)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Fit, write, and say how well; the exit status."""
    runs = published.read(given.csv)
    constants = fit([run for run in published.compared(runs) if is_fitted(run)])
    calibration.write(constants, given.out)
    found = accuracy.groups(accuracy.compare(runs, constants))
    for name in ("fitted", "not fitted", "tuned", "Qwen3, tuned", "Qwen3, tuned, not fitted"):
        if name in found:
            errors = found[name]
            print(
                shown(
                    f"{name:<26}{errors.count:4d} runs  median {100 * errors.median:.1f} %  "
                    f"90th percentile {100 * errors.p90:.1f} %"
                )
            )
    print(shown(f"wrote {given.out}"))
    return 0
