"""Declares settings: each is a field of a frozen dataclass, with its help and its rule.

    @dataclass(frozen=True)
    class TrainConfig:
        steps: int = setting(0, "optimizer steps of the stage", at_least=0)

`settings.py` and `settings_posttrain.py` are made of these and of nothing else. No torch here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Final, get_type_hints


class ConfigError(ValueError):
    """Settings that are wrong, or do not go together; the text is for the person who wrote them."""


REQUIRED: Final = MISSING  # the default of a setting that must be given


def setting(default: object, help: str, **rule: object) -> Any:
    """A dataclass field with one line of help; `rule` is of choices, at_least, above, below."""
    return field(default=default, metadata={"help": help, **rule})


@dataclass(frozen=True)
class Setting:
    """One row of the table of settings: the dotted name, its type, default and rules."""

    name: str
    kind: Any
    default: Any
    rule: Mapping[str, Any]


def settings_of(table: type, prefix: str = "") -> dict[str, Setting]:
    """The settings of one dataclass by dotted name, without those of the tables nested in it."""
    kinds = get_type_hints(table)
    rows = (Setting(prefix + f.name, kinds[f.name], f.default, f.metadata) for f in fields(table))
    return {row.name: row for row in rows if not is_dataclass(row.kind)}


def tables_of(whole: type) -> dict[str, type]:
    """The tables that a dataclass is made of, by dotted name, each before those nested in it."""
    return dict(_tables(whole, ""))


def _tables(whole: type, prefix: str) -> Iterator[tuple[str, type]]:
    for name, kind in get_type_hints(whole).items():
        if isinstance(kind, type) and is_dataclass(kind):
            yield prefix + name, kind
            yield from _tables(kind, f"{prefix}{name}.")
