"""Know before you launch: plans, their accuracy, and scaling studies.

    mq3 plan --model 235b-a22b --gpu h100 --gpus 256
    mq3 study validate published.csv
    mq3 dry-run examples/models/qwen3_235b_a22b.toml --world-size 256
    mq3 study sweep examples/studies/sweep_cpu.toml --local
    mq3 study laws run examples/studies/ladder_cpu.toml

Each command's --help has examples. Commands live in cli/scaling, one module each: `add_parser`
adds its options, and the function that it sets as `run` does the work and returns the exit status.
"""

import importlib
import sys
from collections.abc import Sequence

from megatron_qwen3 import entry
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser

_COMMANDS = ("plan", "validate", "memory", "dry-run", "sweep", "laws", "fit")


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 2 something is wrong with a file, a name or a number."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # Where one is named, the others' modules are not imported: scipy alone takes a second.
    for name in words[:1] if words and words[0] in _COMMANDS else _COMMANDS:
        module = importlib.import_module(f"megatron_qwen3.cli.scaling.{name.replace('-', '_')}")
        module.add_parser(commands)
    given = entry.parse(parser, words)
    return int(given.run(given))
