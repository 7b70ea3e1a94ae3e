"""Types of the options that several commands have, so that a name means the same in each.

    add("--group", type=size(1e9), dest="group_gb")    # 64GB, 500MB
    add("--time", type=hours, dest="hours")            # 12:00:00
    add("--languages", nargs="+", type=language)       # en, eng, eng_Latn
    add_share(add, of=1)                               # --task-id 3 --num-tasks 64

A name that an option had before is taken as well and not shown. Each of these is the type of an
option: a wrong value is one line and status 2.
"""

import argparse
import math
import re
from collections.abc import Callable
from typing import Any

from megatron_qwen3.cli.launch_sbatch import parse_time
from megatron_qwen3.config import ConfigError
from megatron_qwen3.toml import did_you_mean

_SIZE = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([kKMGT]?)(i?)(B?)")
_POWER = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}
Add = Callable[..., Any]


def size(unit: float, is_counted: bool = False) -> Callable[[str], float]:
    """The type of an option that is a number of bytes, kept in units of `unit`.

    k, M, G and T are powers of 1000, Ki to Ti of 1024. A number alone is refused: SLURM would read
    MB, others bytes. is_counted: of tokens, where it is their number.
    """

    def kind(text: str) -> float:
        found = _SIZE.fullmatch(text)
        if not found or (found[3] and not found[2]):
            raise argparse.ArgumentTypeError(f"{text!r} is no size, as 64M, 1.5e9 or 64GB is")
        if not (is_counted or found[2] or found[4]):
            choices = f"{text}GB, {text}MB, or {text}B for bytes"
            raise argparse.ArgumentTypeError(f"{text!r} has no unit; valid: {choices}")
        value = float(found[1]) * (1024 if found[3] else 1000) ** _POWER[found[2]]
        if not 1 <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r}; valid: at least 1")
        return value / unit

    return kind


def language(text: str) -> str:
    """The type of an option that is a language, as ISO 639-1 or -3 has it, or with a script."""
    from data_prep.languages import LANGUAGES, as_typed

    if (code := as_typed(text)) in LANGUAGES:
        return code
    guess = did_you_mean(text, LANGUAGES) or ", as en, eng or eng_Latn; data_prep/languages.csv"
    raise argparse.ArgumentTypeError(f"{text!r} is none of the 119 languages{guess}")


def sbatch_option(text: str) -> str:
    """The type of --sbatch: one option of sbatch's as it stands there, `--account=lm`."""
    name = text.lstrip("-").partition("=")[0]
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise argparse.ArgumentTypeError(f"{text!r} is no OPTION=VALUE, as account=lm is")
    return text if text.startswith("-") else f"--{text}"


def hours(text: str) -> float:
    """The type of an option that is a time as SLURM writes it, kept in hours."""
    try:
        seconds = parse_time(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--time ")) from None
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r}; valid: a time above 0, as 12:00:00")
    return seconds / 3600


def of_one(kind: Callable[[str], float]) -> Callable[[str], str]:
    """The type of an option that is NAME=VALUE, or a value for all; kept as NAME=number."""

    def of(text: str) -> str:
        name, equals, value = text.rpartition("=")
        return f"{name}{equals}{kind(value)!r}"

    return of


class _Renamed(argparse.Action):
    """An option that has another name now, `const`: one line says which."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        parser.error(f"{option_string} is called {self.const} now")


def add_renamed(add: Add, old: str, new: str) -> None:
    """Refuse the option `old` with its name of today, which means the same."""
    add(old, action=_Renamed, nargs="*", const=new, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_minutes(add: Add, default: int) -> None:
    """--time, the limit of a job, kept as whole `minutes`."""
    text = f"limit of a job, as SLURM writes it: 90 (minutes), 12:00:00; default: {default}"
    kept: dict[str, Any] = {"dest": "minutes"}
    add(
        "--time",
        type=lambda text: math.ceil(60 * hours(text)),
        default=default,
        metavar="TIME",
        help=text,
        **kept,
    )
    add("--minutes", type=int, help=argparse.SUPPRESS, **kept)


def add_size(
    add: Add,
    name: str,
    old: str,
    unit: float,
    help: str,
    default: Any = None,
    is_counted: bool = False,
) -> None:
    """An option that is a size, kept under its old name's destination in units of `unit`."""
    dest, kind = old.lstrip("-").replace("-", "_"), size(unit, is_counted)
    add(name, dest=dest, type=kind, default=default, metavar="SIZE", help=help)
    add(old, dest=dest, type=float, help=argparse.SUPPRESS)


def add_share(add: Add) -> None:
    """--task-id of --num-tasks that share a folder."""
    text = "number of this task, of --num-tasks that share the folder (0)"
    add("--task-id", dest="task", type=int, default=0, metavar="N", help=text)
    add("--num-tasks", dest="of", type=int, default=1, metavar="N", help="how many share it (1)")
    add("--task", dest="task", type=int, help=argparse.SUPPRESS)
    add("--of", dest="of", type=int, help=argparse.SUPPRESS)
