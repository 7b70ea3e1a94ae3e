"""scaling_study.py memory: memory of each pipeline rank of one configuration, part by part.

Weights, gradients and optimizer are exact to the byte, activations are counted from the code, and
memory outside torch's allocator is a rule of thumb (planner/README.md). Of modes whose model
samples answers it is the moment of a step that needs most: an update, or sampling with its caches.
"""

import argparse
from dataclasses import fields
from typing import Any

from megatron_qwen3 import config as settings
from megatron_qwen3 import tables
from megatron_qwen3.planner import moments
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.shown import as_json

_EXAMPLES = """examples:
  mq3 memory --gpus 256 \\
      examples/stages/pretrain_1_general.toml examples/models/qwen3_235b_a22b.toml
  mq3 memory --gpus 8 model.preset=qwen3-8b train.steps=1
"""


def add_parser(commands: Any) -> None:
    """Add the command to the sub-parsers `commands`."""
    parser = commands.add_parser(
        "memory",
        help="memory of one configuration, part by part",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument("settings", nargs="+", metavar="FILE.toml | key=value")
    parser.add_argument("--gpus", type=int, required=True, help="ranks of the run")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print a table or JSON; the exit status."""
    config = settings.load(*settings.split(given.settings))
    job = Job.of(config, given.gpus)
    ranks = range(job.layout.pipeline)
    found = [moments.of_rank(config, job, rank, given.gpus, is_gpu=True) for rank in ranks]
    rows = [{**parts, "total": sum(parts.values())} for parts in found]
    if given.json:
        print(as_json({"pipeline_ranks": rows}))
        return 0
    own = [field.name for field in fields(Memory)]
    # Parts that no other mode has are shown where they take memory.
    names = [n for row in rows for n in row if n in own or any(r.get(n) for r in rows)]
    names = list(dict.fromkeys(names))
    lines = [["rank", *names]]
    for rank, row in zip(ranks, rows, strict=True):
        lines.append([str(rank), *(f"{row.get(name, 0.0) / 1e9:.2f}" for name in names)])
    table = tables.table(lines, "GB per GPU")
    tables.console().print(table)
    return 0
