"""Know before you launch: plans, their accuracy, and scaling studies.

    python tools/scaling_study.py plan --model 235b-a22b --gpu h100 --gpus 256
    python tools/scaling_study.py validate published.csv
    python tools/scaling_study.py dry-run examples/models/qwen3_235b_a22b.toml --world-size 256
    python tools/scaling_study.py sweep examples/studies/sweep_cpu.toml --local
    python tools/scaling_study.py laws run examples/studies/ladder_cpu.toml

Each command's --help has examples. Commands live in cli/scaling, one module each: `add_parser`
adds its options, and the function that it sets as `run` does the work and returns the exit status.
"""

import importlib
import sys
from collections.abc import Sequence

from megatron_qwen3 import entry
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown_lines

_COMMANDS = ("plan", "validate", "memory", "dry-run", "sweep", "laws", "fit")


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
    try:
        return int(given.run(given))
    except (ConfigError, OSError) as error:
        print(shown_lines(f"error: {error}"), file=sys.stderr)
        return 2
