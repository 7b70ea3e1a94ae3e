"""Study files: TOML read strictly into a dataclass, and settings as the trainer takes them.

study = read(Path("examples/studies/sweep_cpu.toml"), Sweep)
config = configure(["examples/models/tiny_moe.toml", "parallel.tensor=2"])
"""

import difflib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from megatron_qwen3 import config as settings
from megatron_qwen3.config import Config, ConfigError

T = TypeVar("T")


def read(path: Path, kind: type[T]) -> T:
    """The file as a `kind`; ConfigError names the key that is unknown, missing or of a wrong type.

    Fields may be str, int, float, tuple[…, ...] of these or of dataclasses, and dict[str, tuple].
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return _table(table, kind, f"{path}: ")


def configure(items: Iterable[str]) -> Config:
    """The configuration of TOML files and key=value pairs, in the trainer's order."""
    return settings.load(*settings.split(items))


def check_names(folder: str, names: Iterable[str]) -> None:
    """ConfigError for a name that is none for a folder: they stand in paths and in job scripts.

    folder: where all of it goes; there may be spaces on the way to it.
    """
    for name in (folder.replace(" ", "_"), *names):
        if not re.fullmatch(r"[\w./-]+", name):
            raise ConfigError(f"{name!r} is no name for a folder; valid: letters, digits, _ . - /")


def _table(table: dict[str, Any], kind: type[T], where: str) -> T:
    hints = get_type_hints(kind)
    for key in table:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, 1)
            guess = f"did you mean {close[0]}?" if close else f"valid: {', '.join(hints)}"
            raise ConfigError(f"{where}{key} is not known; {guess}")
    for field in fields(kind):  # type: ignore[arg-type]
        is_required = field.default is MISSING and field.default_factory is MISSING
        if is_required and field.name not in table:
            raise ConfigError(f"{where}{field.name} is missing")
    return kind(**{key: _value(value, hints[key], where + key) for key, value in table.items()})


def _value(value: Any, kind: Any, where: str) -> Any:
    origin, of = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(item, of[0], f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _value(item, of[1], f"{where}.{key}") for key, item in value.items()}
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        return _table(value, kind, f"{where}.")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        return value
    raise ConfigError(f"{where} = {settings.emit(value)} is not {_name(kind)}")


def _name(kind: Any) -> str:
    if isinstance(kind, GenericAlias):
        return f"a list of {_NAMES.get(get_args(kind)[0], 'tables')}s"
    return f"a {_NAMES.get(kind, 'table')}"


_NAMES = {str: "string", int: "whole number", float: "number"}
