"""Every setting with its default, or all settings of one run.

    mq3 config
    mq3 config examples/stages/pretrain_1_general.toml examples/models/qwen3_8b.toml optim.lr=2e-4
    mq3 config runs/8b/pretrain_1_general

With files, folders of runs and key=value pairs, the settings that `train` would read from them:
checked, as one TOML file.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from megatron_qwen3 import config as settings
from megatron_qwen3 import entry
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.settings import SETTINGS
from megatron_qwen3.shown import as_json, shown_text


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 2 a setting or file is wrong."""
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("settings", nargs="*", metavar="FILE.toml | RUN | key=value")
    parser.add_argument("--json", action="store_true", help="print JSON instead of TOML")
    given = entry.parse(parser, arguments)
    config = settings.load(*settings.split(given.settings)) if given.settings else None
    if given.json:
        print(as_json(asdict(config) if config else _defaults()))
        return 0
    print(shown_text(settings.to_toml(config) if config else settings.describe()))
    return 0


def _defaults() -> dict[str, Any]:
    """Default and meaning of every setting, by its dotted name."""
    return {
        name: {"default": one.default, "help": one.rule["help"]} for name, one in SETTINGS.items()
    }
