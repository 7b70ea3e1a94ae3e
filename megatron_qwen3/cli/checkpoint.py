"""Whether checkpoints are what was saved: every file, with its checksum.

    mq3 checkpoint runs/8b/pretrain_1_general/checkpoints/step_00001000
    mq3 checkpoint runs/8b/*/checkpoints/*

Prints a line for every file that is not what was saved, and `intact` where there is none.
"""

from collections.abc import Sequence

from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.storage import manifest


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 intact, 1 damaged, 2 called wrongly."""
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="a step's folder")
    return manifest.main(parser.parse_args(arguments).checkpoints)
