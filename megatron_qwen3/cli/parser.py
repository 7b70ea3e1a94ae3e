"""The parser of every command: `Parser(prog=prog, description=__doc__)`.

given = entry.parse(parser, arguments)  # settings stand wherever they are typed
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from megatron_qwen3 import launcher
from megatron_qwen3.cli.commands import COMMANDS
from megatron_qwen3.entry import Setting


class Parser(argparse.ArgumentParser):
    """argparse's, with texts that stand as they are written.

    Examples in them are calls of files in tools/; where `mq3` was called, they are calls of it.
    Options are typed whole: else --gpu of one command would be --gpus of another. Sub-parsers are
    of this class, too.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
        )
        self.register("type", int, whole)
        self.register("type", float, number)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line, as of everything else that is wrong."""
        launcher.tell(f"error: {message}; {self.prog} --help shows all options")
        sys.exit(2)

    def format_help(self) -> str:
        """The whole help, as --help prints it."""
        text = super().format_help()
        if not (self.prog or "").startswith("mq3 "):
            return text
        for name, command in COMMANDS.items():
            _, _, file = command.module.rpartition("megatron_qwen3.cli.")
            text = text.replace(f"python tools/{file}.py", f"mq3 {name}")
            text = text.replace(f"tools/{file}.py", f"mq3 {name}")
        return text


def or_setting(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of an option of several words, which settings may follow: a key=value is one."""
    return lambda text: Setting(text) if "=" in text else kind(text)


def one_of(*choices: str) -> Callable[[str], str]:
    """The type of an option that is one of these words."""

    def kind(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r}; valid: {', '.join(choices)}")
        return text

    return kind


def whole(text: str) -> int:
    """An option's whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, as 32768 is") from None


def number(text: str) -> float:
    """An option's number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, as 0.5 or 2e9 is") from None


def positive(text: str) -> int:
    """An option's whole number of at least 1."""
    if (value := whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}; valid: at least 1")
    return value
