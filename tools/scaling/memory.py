"""scaling_study.py memory: what each rank of one configuration holds, part by part."""

import argparse
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from megatron_qwen3 import config as settings
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.state import State

_EXAMPLES = """examples:
  python tools/scaling_study.py memory --gpus 256 \\
      examples/stages/pretrain_1_general.toml examples/models/qwen3_235b_a22b.toml
  python tools/scaling_study.py memory --gpus 8 model.preset=qwen3-8b train.steps=1
"""


def add_parser(commands: Any) -> None:
    """Add the command to the sub-parsers `commands`."""
    parser = commands.add_parser(
        "memory",
        help="memory of one configuration, part by part",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("settings", nargs="+", metavar="FILE.toml | key=value")
    parser.add_argument("--gpus", type=int, required=True, help="ranks of the run")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print a table; the exit status."""
    files = [item for item in given.settings if "=" not in item]
    config = settings.load(files, [item for item in given.settings if "=" in item])
    job = Job.of(config, given.gpus)
    table = Table("pipeline rank", "parameters", "weights", "gradients", "optimizer")
    table.box = box.SIMPLE_HEAD
    for rank in range(job.layout.pipeline):
        state = State.of(job, rank)
        sizes = (state.weight_bytes, state.gradient_bytes, state.optimizer_bytes)
        cells = [f"{size / 2**30:.2f} GiB" for size in sizes]
        table.add_row(str(rank), f"{state.parameters:,}", *cells)
    Console().print(table)
    return 0
