"""Reads and writes the recipe of a cleaning, one TOML file that people edit and keep.

    given = read("mine.toml", {"similarity": 0.8}, ["quality.prose.max_bullets=0.5"])
    settings = CleanSettings(inputs, out, **given)
    text(settings)           # TOML of all of it, each key with its help; --show prints it

A file names the settings that it changes: all others stay as in `text(CleanSettings((), ""))`, the
recipe of a cleaning without a file. Inputs and folders are no part of it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from data_prep.clean.settings import OF_A_RUN, CleanSettings, as_tree
from data_prep.languages import as_typed
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.toml import as_kind, below, check_keys, emit, parse_value, read_toml

FILE = "recipe.toml"
_KIND = "a recipe of a cleaning"
_HEAD = "# For mq3 data clean --recipe FILE. Keys that are left out keep their defaults."
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_OPTIONS = "options"  # the one table whose values may be of any kind
KEYS = [one.name for one in fields(CleanSettings) if one.name not in OF_A_RUN]


def read(
    path: str | None, options: Mapping[str, Any], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """The fields of CleanSettings that a recipe has: by default, the file, the command line's
    options, and KEY=VALUE pairs with dotted keys, each in place of those before it.

    Raises ConfigError with the file or the pair, the key, and valid values.
    """
    tree = tree_of(CleanSettings((), ""))
    if path:
        tree = _kept(_merged(tree, read_toml(path, _KIND)), path)
    tree = _merged(tree, options)
    for override in overrides:
        tree = _kept(_merged(tree, _table_of(override)), "--set")
    if isinstance(named := tree["languages"], list):
        tree["languages"] = [as_typed(one) if isinstance(one, str) else one for one in named]
    return _values(tree, path or "--set")


def tree_of(settings: CleanSettings) -> dict[str, Any]:
    """Tables and values of a recipe, as TOML has them."""
    return {name: value for name, value in as_tree(settings).items() if name in KEYS}


def text(settings: CleanSettings) -> str:
    """The recipe as TOML, which `read` reads back to the same settings."""
    return "\n".join((_HEAD, *_lines(settings, tree_of(settings), ""))) + "\n"


def keep(settings: CleanSettings) -> None:
    """Write it to `out`, for people who read the folder or clean more in the same way."""
    path = settings.folder(FILE)
    content = text(settings).encode()
    if not path.exists() or path.read_bytes() != content:
        write_whole(path, [content])


def _kept(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """The tree, after a check of all of it, whose errors name `source`."""
    _values(tree, source)
    return tree


def _values(tree: dict[str, Any], source: str) -> dict[str, Any]:
    kinds = get_type_hints(CleanSettings)
    check_keys(tree, KEYS, source)
    found = {k: as_kind(v, kinds[k], source, k) for k, v in tree.items() if k != _OPTIONS}
    options = tree[_OPTIONS]
    if not isinstance(options, dict) or not all(isinstance(v, dict) for v in options.values()):
        raise ConfigError(f"{source}: {_OPTIONS} = {emit(options)} is not a table of tables")
    return {**found, _OPTIONS: options}


def _table_of(override: str) -> dict[str, Any]:
    """KEY=VALUE as nested tables."""
    name, equals, value = (part.strip() for part in override.partition("="))
    if not (equals and name):
        raise ConfigError(f"--set {override!r} is not KEY=VALUE, as quality.prose.max_bullets=0.5")
    try:
        tree: Any = parse_value(value)
    except ValueError:
        tree = value  # a bare word
    for key in reversed(_keys(name)):
        tree = {key: tree}
    return dict(tree)


def _keys(name: str) -> list[str]:
    """The keys of a dotted name; a key with a dot in it stands in double quotes."""
    return [quoted or bare for quoted, bare in re.findall(r'"([^"]*)"|([^."]+)', name)]


def _merged(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Tables joined, values of the other in place of those of the first."""
    result = dict(tree)
    for key, value in other.items():
        old = result.get(key)
        joined = isinstance(old, dict) and isinstance(value, Mapping)
        result[key] = _merged(old or {}, value) if joined else value
    return result


def _lines(about: Any, tree: Mapping[str, Any], name: str) -> Iterator[str]:
    """A table's values with their help, then the tables within it."""
    helps = {one.name: one.metadata.get("help", "") for one in fields(about)} if about else {}
    tables = {key: value for key, value in tree.items() if isinstance(value, dict)}
    for key, value in tree.items():
        if key not in tables:
            yield f"{_key(key)} = {emit(value)}" + (f"  # {helps[key]}" if key in helps else "")
    for key, table in tables.items():
        yield ""
        if helps.get(key):
            yield f"# {helps[key]}"
        place = below(name, _key(key))
        if not table or not all(isinstance(value, dict) for value in table.values()):
            yield f"[{place}]"
        inner = getattr(about, key, None)
        yield from _lines(inner if is_dataclass(inner) else None, table, place)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else emit(key)
