"""scaling_study.py dry-run: build a run's real engine without its memory, and weigh every rank.

The model, the gradient buffers and the distributed optimizer are those that training builds, on
torch's meta device under a pretended process group; nothing is estimated. Ranks that hold equally
much stand in one line. Activations are not in it: `plan` and `memory` estimate them.
"""

import argparse
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from rich.table import Table

from megatron_qwen3 import config as settings
from megatron_qwen3 import tables
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.parallel.layout import Layout, smallest_world
from megatron_qwen3.shown import as_json

if TYPE_CHECKING:
    from megatron_qwen3.training.dry_run import Role

_EXAMPLES = """examples:
  mq3 dry-run examples/models/qwen3_235b_a22b.toml --world-size 256
  mq3 dry-run model.preset=qwen3-8b parallel.tensor=4 --shapes
  mq3 dry-run STAGE.toml MODEL.toml --json > ranks.json
"""


def add_parser(commands: Any) -> None:
    """Add the command to the sub-parsers `commands`."""
    parser = commands.add_parser(
        "dry-run",
        help="shapes and bytes of every rank, from the real engine",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument("settings", nargs="+", metavar="FILE.toml | key=value")
    parser.add_argument(
        "--world-size",
        type=int,
        metavar="N",
        help="ranks; default: the fewest that hold the layout",
    )
    parser.add_argument("--shapes", action="store_true", help="list every weight of every role")
    parser.add_argument("--json", action="store_true", help="print JSON, shapes included")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print a table or JSON; the exit status."""
    files, overrides = settings.split(given.settings)
    config = settings.load(files, overrides, any_length=True)  # a file of a model is enough
    world_size = given.world_size or smallest_world(config.parallel)
    if world_size < 1:
        raise ConfigError(f"--world-size {world_size}: a run has at least 1 rank")
    # Nor does the batch; this one can be shared by any layout.
    batch = config.train.micro_batch * config.parallel.pipeline * world_size
    config = replace(config, train=replace(config.train, global_batch=batch))
    layout = Layout.of(config, world_size)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # shapes need no GPU, and must not take its memory
    warnings.filterwarnings("ignore", module=r"torch|megatron")
    from megatron_qwen3.training.dry_run import dry_run  # torch, once nothing is wrong any more

    roles = dry_run(config, layout)
    if given.json:
        print(as_json({"world_size": world_size, "roles": [_as_dict(role) for role in roles]}))
        return 0
    console = tables.console()
    console.print(_table(config, world_size, roles))
    for role in roles if given.shapes else []:
        console.print(_shapes(role))
    return 0


def _as_dict(role: "Role") -> dict[str, Any]:
    return {**asdict(role), "total_bytes": role.total_bytes}


def _table(config: Config, world_size: int, roles: Sequence["Role"]) -> Table:
    words, sizes = ["stage", "layers", "ranks"], ["weights", "grads", "optim"]
    has_reference = any(role.reference_bytes for role in roles)
    sizes += ["reference"] * has_reference
    lines = [[*words, "parameters", *sizes, "bytes together"]]
    for role in roles:
        bytes_of = [role.weight_bytes, role.gradient_bytes, role.optimizer_bytes]
        bytes_of += [role.reference_bytes] * has_reference
        lines.append(
            [
                str(role.pipeline_rank),
                _layers(role),
                _spans(role.ranks),
                f"{role.parameters:,}",
                *(f"{size / 2**30:.3f}" for size in bytes_of),
                f"{role.total_bytes:,}",
            ]
        )
    name = config.model.preset or "model"
    title = f"{name} on {world_size} ranks, {config.train.precision}: GiB of one rank, and bytes"
    return tables.table(lines, title, words)


def _layers(role: "Role") -> str:
    """`emb 0-10`; model chunks are joined by `+`, and `out` is the output layer."""
    chunks = " + ".join(map(_spans, role.layers))
    return " ".join(["emb"] * role.has_embedding + [chunks] + ["out"] * role.has_logits)


def _spans(numbers: Sequence[int]) -> str:
    """Ascending numbers with their runs shortened: 0-3, 6."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _shapes(role: "Role") -> Table:
    lines = [["weight", "shape", "type"]]
    lines += [[one.name, " × ".join(map(str, one.shape)), one.dtype] for one in role.tensors]
    title = f"pipeline rank {role.pipeline_rank}, rank {role.ranks[0]}"
    return tables.table(lines, title, words=lines[0])
