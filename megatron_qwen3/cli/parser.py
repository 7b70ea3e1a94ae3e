"""The parser of every command: `Parser(prog=prog, description=__doc__)`.

given = entry.parse(parser, arguments)  # settings stand wherever they are typed
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from megatron_qwen3 import launcher
from megatron_qwen3.entry import TypedSetting
from megatron_qwen3.toml import did_you_mean


class Parser(argparse.ArgumentParser):
    """argparse's, with texts that stand as they are written.

    Options are typed whole: else --gpu of one command would be --gpus of another. Sub-parsers are
    of this class, too.
    """

    def __init__(self, usual: str = "", **settings: Any) -> None:
        """usual: the command of its own that is meant where the first word names none."""
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings
        )
        self._usual = usual
        self.register("type", int, whole)
        self.register("type", float, number)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line, as of everything else that is wrong."""
        launcher.tell(f"error: {message}; {self.prog} --help shows all options")
        sys.exit(2)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's; the usual command may be left out."""
        words = list(sys.argv[1:] if args is None else args)
        if "_ARGCOMPLETE" in os.environ and type(self) is Parser:
            _complete(self)
        if self._is_left_out(words):
            words = [self._usual, *words]
        return super().parse_known_args(words, namespace)

    def _is_left_out(self, words: Sequence[str]) -> bool:
        """Whether the usual command is meant: `words` begin with no command."""
        own = [a for a in self._actions if isinstance(a, argparse._SubParsersAction)]
        if not (self._usual and own and words) or words[0] in ("-h", "--help", *own[0].choices):
            return False
        if words[0].startswith("-") or os.path.exists(words[0]):
            return True
        return not did_you_mean(words[0], own[0].choices)  # a slip, which argparse tells


def _complete(parser: Parser) -> None:
    """Answer a shell that asks how the words after the program's name go on, and exit.

    argcomplete has the parser parse those that are there, as a class of its own made of this one.
    """
    import argcomplete

    # the word that stands for the program, from 1
    os.environ["_ARGCOMPLETE"] = str(len(parser.prog.split()))
    argcomplete.autocomplete(parser)


def or_setting(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """The type of an option of several words, which settings may follow: a key=value is one."""
    return lambda text: TypedSetting(text) if "=" in text else kind(text)


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
