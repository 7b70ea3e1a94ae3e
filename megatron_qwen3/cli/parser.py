"""The parser of every command: `Parser(prog=prog, description=__doc__)`."""

import argparse
from typing import Any, NoReturn

from megatron_qwen3.cli.commands import COMMANDS

_LONGEST_USAGE = 6  # lines that are printed before an error


class Parser(argparse.ArgumentParser):
    """argparse's, with texts that stand as they are written.

    Examples in them are calls of files in tools/; where `mq3` was called, they are calls of it.
    Sub-parsers are of this class, too.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2; a usage so long that it hides the message is left out."""
        if self.format_usage().count("\n") > _LONGEST_USAGE:
            self.exit(2, f"{self.prog}: error: {message}; {self.prog} --help shows all options\n")
        super().error(message)

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


def positive(text: str) -> int:
    """An option's whole number of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}; valid: at least 1")
    return number
