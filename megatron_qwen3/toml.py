"""Reads TOML files that people write, strictly, and writes values as TOML text.

    tree = read_toml("mine.toml", "a study")              # tables and values, as they stand
    study = as_kind(tree, Sweep, "mine.toml")             # as a dataclass
    rate = as_kind(tree["lr"], float, "mine.toml", "lr")  # or one value
    line = f"lr = {emit(rate)}"

Settings, studies, recipes and clusters are read by this and by nothing else. Everything wrong is a
`ConfigError` of one line: the file, the wrong text, and the valid ones. No torch here.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

from megatron_qwen3.settings import ConfigError

_MOST_BYTES: Final = 1 << 24  # of a file that people write; a study writes some 2,000
_NAMES: Final[dict[Any, tuple[str, str]]] = {  # of one, and of several
    bool: ("true or false", "true and false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
}


def read_toml(path: str | Path, kind: str) -> dict[str, Any]:
    """The tables and values of a file.

    kind: the expected content, as "a study"; the ConfigError names it where the file has another.
    """
    wanted = f"it should be a TOML file of {kind}"
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"{path}: more than {_MOST_BYTES:,} bytes; {wanted}")
        return parse(content.decode(), path, kind)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {wanted}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read (not UTF-8 text); {wanted}") from None


def parse(text: str, path: str | Path, kind: str) -> dict[str, Any]:
    """The tables and values of the text of the file at `path`, as `read_toml` gives them."""
    wanted = f"it should be a TOML file of {kind}"
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deeply; {wanted}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}; {wanted}") from None


def parse_value(text: str) -> Any:
    """The value that stands behind the = of a command line; ValueError where it is not TOML."""
    try:
        tree = tomllib.loads(f"value = {text}")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if len(tree) > 1:
        raise ValueError("more than one value")
    return tree["value"]


def as_kind(value: Any, kind: Any, file: str | Path, name: str = "") -> Any:
    """`value`, as TOML gives it, as a `kind`, else ConfigError.

    kind: bool, int, float, str, tuple[…, ...] or dict[str, …] of kinds, or a dataclass of them,
    whose fields are the keys of a table. 3e12 is fine for a whole number.
    file, name: where it stands, as "mine.toml" and "stages[0].lr"; without a name, the whole file.
    """
    origin, of = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(as_kind(item, of[0], file, f"{name}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: as_kind(item, of[1], file, below(name, key)) for key, item in value.items()}
    if is_dataclass(kind) and isinstance(value, dict):
        return _as_dataclass(value, kind, file, name)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        return value
    raise ConfigError(f"{file}: {name} = {emit(value)} is not {_name(kind)}")


def _as_dataclass(table: Mapping[str, Any], kind: Any, file: str | Path, name: str) -> Any:
    kinds = get_type_hints(kind)
    check_keys(table, kinds, file, name)
    values = {k: as_kind(item, kinds[k], file, below(name, k)) for k, item in table.items()}
    for field in fields(kind):
        is_required = field.default is MISSING and field.default_factory is MISSING
        if is_required and field.name not in table:
            raise ConfigError(f"{file}: {below(name, field.name)} is missing")
    return kind(**values)


def check_keys(
    table: Iterable[str], known: Iterable[str], file: str | Path, name: str = ""
) -> None:
    """ConfigError for the first key of a table that is none of the known, with the nearest."""
    known = list(known)
    for key in table:
        if key not in known:
            guess = did_you_mean(key, known) or f"; valid: {', '.join(known)}"
            raise ConfigError(f"{file}: {below(name, key)} is not known{guess}")


def below(name: str, key: str) -> str:
    """The dotted name of a key in the table `name`, in the file itself where that is empty."""
    return f"{name}.{key}" if name else key


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean x?' where a known word is close, else nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def emit(value: object) -> str:
    """`value` as TOML text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(emit, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {emit(item)}' for key, item in value.items())}}}"
    return str(value)


def _name(kind: Any) -> str:
    """A kind in words: `a list of whole numbers`."""
    if is_dataclass(kind):
        return f"a table of {', '.join(get_type_hints(kind))}"
    if get_origin(kind) is tuple:
        return f"a list of {_NAMES.get(get_args(kind)[0], ('', 'tables'))[1]}"
    return _NAMES.get(kind, ("a table", ""))[0]
