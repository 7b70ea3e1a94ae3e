"""Command-line options from tables of settings: name, help and bounds stand in one place.

    options.add(parser, CandidateSettings, "candidates")      # --samples, --temperature, …
    settings = options.taken(CandidateSettings, parser.parse_args())

A table is a frozen dataclass whose fields are made by `setting`. Nothing here imports torch.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from megatron_qwen3.fields import REQUIRED, ConfigError

_Table = TypeVar("_Table")


def add(parser: argparse.ArgumentParser, table: type, title: str) -> None:
    """One option for each setting of the table, under a heading of the help."""
    group = parser.add_argument_group(title)
    kinds = get_type_hints(table)
    for row in fields(table):
        kind, text = kinds[row.name], row.metadata["help"].replace("%", "%%")
        more: dict[str, Any] = {"default": row.default}
        if row.default is REQUIRED:
            more = {"required": True}
        elif row.default not in ("", ()) and row.default is not False:
            text += f" ({_shown(row.default)})"
        if kind is bool:
            more |= {"action": argparse.BooleanOptionalAction}
        elif get_origin(kind) is tuple:
            of = get_args(kind)[0]
            more |= {"nargs": "*", "type": of, "metavar": _metavar(row, of)}
        else:
            choices = row.metadata.get("choices")
            more |= {"type": kind, "choices": choices}
            more |= {} if choices else {"metavar": _metavar(row, kind)}
        group.add_argument(f"--{row.name.replace('_', '-')}", help=text, **more)


def taken(table: type[_Table], given: argparse.Namespace) -> _Table:
    """The table with the given values. ConfigError where one is out of range."""
    values = {row.name: getattr(given, row.name) for row in fields(table)}  # type: ignore[arg-type]
    named = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return table(**named)


def check(settings: Any) -> None:
    """ConfigError where a setting breaks its rule; called from a table's __post_init__."""
    for fault in _faults(settings):
        raise ConfigError(fault)


def _faults(settings: Any) -> Iterator[str]:
    for row in fields(settings):
        value, rule = getattr(settings, row.name), row.metadata
        if "choices" in rule and value not in rule["choices"]:
            yield f"{row.name} = {value}; valid: {', '.join(rule['choices'])}"
        if "at_least" in rule and not rule["at_least"] <= value < math.inf:
            yield f"{row.name} = {value}; valid: at least {rule['at_least']:g}"
        if "above" in rule and not rule["above"] < value < math.inf:
            yield f"{row.name} = {value}; valid: above {rule['above']:g}"
        if "at_most" in rule and not value <= rule["at_most"]:
            yield f"{row.name} = {value}; valid: at most {rule['at_most']:g}"


def _metavar(row: Any, kind: type) -> str:
    return str(row.metadata.get("metavar", {int: "N", float: "X"}.get(kind, "TEXT")))


def _shown(default: Any) -> str:
    """A default as help text, with % escaped."""
    text = " ".join(map(str, default)) if isinstance(default, tuple) else f"{default}"
    return text.replace("%", "%%")
