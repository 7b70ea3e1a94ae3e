"""Verify that checkpoints are as they were saved: every file, by its checksum.

    mq3 checkpoint runs/8b/pretrain_1_general/checkpoints/step_00001000
    mq3 checkpoint runs/8b/*/checkpoints/*

Prints a line for every file that differs from the saved one, and `intact` where none does.
"""

from collections.abc import Sequence
from pathlib import Path

from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import as_json, shown
from megatron_qwen3.storage import manifest


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 intact, 1 damaged, 2 called wrongly."""
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="a step's folder")
    parser.add_argument("--json", action="store_true", help="print JSON: faults by checkpoint")
    given = parser.parse_args(arguments)
    for one in given.checkpoints:
        if not Path(one).is_dir():
            raise ConfigError(f"{shown(one)} is no folder; a checkpoint is RUN/checkpoints/step_…")
    if not given.json:
        return manifest.main(given.checkpoints)
    found = {one: manifest.faults(Path(one), share=(0, 1)) for one in given.checkpoints}
    print(as_json(found))
    return 1 if any(found.values()) else 0
