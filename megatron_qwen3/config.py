"""Reads the configuration of a run, in layers.

    config = load(["examples/stages/pretrain_1_general.toml", "examples/models/qwen3_8b.toml"],
                  ["optim.lr=2e-4"])

Defaults < the model preset < the tokenizer of a curriculum (`made_with.py`) < files from left to
right < key=value. A later file replaces a list (`data.sources`) as a whole. Everything wrong is a
`ConfigError` that names the place and the valid values. `python -m megatron_qwen3.config` prints
every setting (`settings.py`) with its default. Nothing here imports torch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args, get_type_hints

from megatron_qwen3 import entry, made_with, modes
from megatron_qwen3 import validate as rules
from megatron_qwen3.fields import Setting, settings_of
from megatron_qwen3.presets import PRESETS
from megatron_qwen3.settings import SETTINGS, TABLES, Config, ConfigError
from megatron_qwen3.shown import shown, shown_text
from megatron_qwen3.storage.folder import SETTINGS_FILE
from megatron_qwen3.toml import as_kind, did_you_mean, emit, parse_value, read_toml

__all__ = ["Config", "ConfigError", "changes", "load", "split", "to_toml", "validate"]


_LONGEST_SHOWN = 80  # characters of a value
_LENGTH = ("train.tokens", "train.steps", "optim.warmup_steps", "optim.decay_steps")
_PRESET = "model.preset"
# In these {dir} is run.dir.
_PATHS = {"checkpoint.init_from", "sft.teacher.path", "distill.teacher.path"}


def load(
    paths: Iterable[str | Path], overrides: Sequence[str] = (), any_length: bool = False
) -> Config:
    """The validated configuration of TOML files and key=value pairs; a run's folder is its file.

    any_length: the length of the run does not matter and need not be given: it has one step.
    Raises ConfigError if a file cannot be read, a key is unknown, or values are wrong or conflict.
    """
    layers = [*map(_read_layer, paths)]
    layers += [("command line", _read_override(override)) for override in overrides]
    _check_presets(layers)
    values: dict[str, Any] = {}
    for _, layer in layers:
        values |= layer
    if any_length:
        values = {n: value for n, value in values.items() if n not in _LENGTH} | {"train.steps": 1}
    preset = _preset_values(values.get(_PRESET, ""))
    values = preset | made_with.defaults(values.get("data.curriculum", "")) | values
    values = {"model.head": modes.head_of(values.get("run.mode", ""))} | values
    here = values.get("run.dir", SETTINGS["run.dir"].default)
    for name in _PATHS & set(values):
        values[name] = values[name].replace("{dir}", here)
    config: Config = _tables(Config, values)
    validate(config, values)
    return config


def split(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """(files, key=value pairs) of a command line, each in order.

    A path may have = in it; the name before the = of a pair has no slash.
    """
    files: list[str] = []
    pairs: list[str] = []
    for item in arguments:
        name, equals, _ = item.partition("=")
        (pairs if equals and "/" not in name else files).append(item)
    return files, pairs


def validate(config: Config, given: Iterable[str] = ()) -> None:
    """Raise `ConfigError` with every fault that can be seen without the world size.

    given: names of settings that were set, if only to their defaults.
    """
    if text := "\n".join(rules.faults(config, given)):
        raise ConfigError(text)


def _read_layer(given: str | Path) -> tuple[str, dict[str, Any]]:
    """The name and the settings of a file, or of a run by its folder."""
    saved = Path(given) / SETTINGS_FILE
    path = saved if saved.is_file() else Path(given)
    read = _read_file(path)
    return str(path), modes.of_saved(read) if path.name == SETTINGS_FILE else read


def _check_presets(layers: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Raise ConfigError where one model's settings come after another's."""
    presets = {origin: layer[_PRESET] for origin, layer in layers if layer.get(_PRESET)}
    for (before, first), (after, second) in pairwise(presets.items()):
        if second != first:
            raise ConfigError(
                f'{after}: model.preset = "{second}", but {before} has "{first}" and settings for '
                "that model, as its layout and run.dir, which would stay; give one model's file"
            )


def _preset_values(preset: str) -> dict[str, Any]:
    if not preset:
        return {}
    if preset not in PRESETS:
        guess = did_you_mean(preset, PRESETS)
        raise ConfigError(
            f'model.preset = "{preset}" is no preset{guess}; valid: {", ".join(PRESETS)}'
        )
    return {f"model.{name}": value for name, value in PRESETS[preset].items()}


def _tables(kind: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """A dataclass of the values whose dotted names begin with `prefix`, its tables made alike."""
    kinds = get_type_hints(kind)
    content = {
        name: _tables(kinds[name], values, f"{prefix}{name}.")
        for name in kinds
        if is_dataclass(kinds[name])
    }
    return kind(**content, **{n: values[prefix + n] for n in kinds if prefix + n in values})


def _read_file(path: Path) -> dict[str, Any]:
    """The settings of one TOML file by dotted name, converted to their types."""
    values: dict[str, Any] = {}
    for table, content in read_toml(path, "settings").items():
        if table not in TABLES:
            raise ConfigError(f"{path}: {_not_a_setting(table)}")
        values |= dict(_read_table(path, table, content))
    return values


def _read_table(path: Path, table: str, content: Any) -> Iterator[tuple[str, Any]]:
    """The settings of a table, and of those nested in it."""
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: {table} is a table; write [{table}] and its settings below")
    for key, value in content.items():
        name = f"{table}.{key}"
        if name in TABLES:
            yield from _read_table(path, name, value)
        else:
            yield name, as_kind(value, _setting(name, str(path)).kind, path, name)


def _read_override(override: str) -> dict[str, Any]:
    """One key=value of the command line; the value is TOML, a bare word is a string."""
    name, equals, text = (part.strip() for part in override.partition("="))
    if not equals:
        raise ConfigError(f"command line: {override!r} is neither a TOML file nor key=value")
    row = _setting(name, "command line")
    try:
        value = parse_value(text)
    except ValueError as error:
        opens_a_value = ('"', "'") if row.kind is str else ("[", "{", '"', "'")
        if text.startswith(opens_a_value):
            raise ConfigError(f"command line: {name} is not valid TOML: {error}") from None
        value = text
    if row.kind is str and not isinstance(value, str):
        value = text  # run.name=8 names a run, although TOML reads a number
    return {name: as_kind(value, row.kind, "command line", name)}


def _setting(name: str, origin: str) -> Setting:
    if name not in SETTINGS:
        raise ConfigError(f"{origin}: {_not_a_setting(name)}")
    return SETTINGS[name]


def _not_a_setting(name: str) -> str:
    if name in TABLES:
        return f"{name} is a table of settings, not a setting"
    if within := [known for known in SETTINGS if name.startswith((f"{known}.", f"{known}["))]:
        whole = f', a list that is given whole: \'{within[0]}=[{{name="a",path="…"}}]\''
        is_list = within[0].endswith(".sources")
        return f"{name} is not a setting, but {within[0]} is{whole if is_list else ''}"
    leaf = name.rpartition(".")[2]
    same_leaf = [known for known in SETTINGS if known.endswith("." + leaf)]
    if same_leaf:
        return f"{name} is not a setting; did you mean {' or '.join(same_leaf)}?"
    guess = did_you_mean(name, [*SETTINGS, *TABLES])
    return f"{name} is not a setting{guess or '; python -m megatron_qwen3.config lists them'}"


def changes(before: Config, now: Config) -> list[str]:
    """A line for each setting that differs: `optim.lr: 0.001 → 0.002`."""
    lines = []
    for name in SETTINGS:
        old, new = (attrgetter(name)(config) for config in (before, now))
        if old != new:
            values = [emit(_plain(value)) for value in (old, new)]
            lines.append(shown(f"{name}: {' → '.join(map(_cut, values))}"))
    return lines


def _plain(value: Any) -> Any:
    """A value without dataclasses: their fields by name."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return vars(value) if is_dataclass(value) else value


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def to_toml(config: Config) -> str:
    """The configuration, as far as its mode knows it, as TOML; `load` of it gives an equal one."""
    blocks = []
    for table, kind in TABLES.items():
        rows = settings_of(kind, f"{table}.")
        names = [name for name in rows if modes.belongs(name, config.run.mode)]
        of_tables = [name for name in names if any(map(is_dataclass, get_args(rows[name].kind)))]
        values = {n.rpartition(".")[2]: attrgetter(n)(config) for n in names if n not in of_tables}
        if values:
            blocks.append(_emit_rows(f"[{table}]", values))
        for name in of_tables:
            blocks += [_emit_rows(f"[[{name}]]", vars(own)) for own in attrgetter(name)(config)]
    return "\n".join(blocks)


def _emit_rows(header: str, rows: Mapping[str, Any]) -> str:
    return "".join([f"{header}\n", *(f"{name} = {emit(value)}\n" for name, value in rows.items())])


def describe() -> str:
    """Every setting, its default and its help, one line each under the line of its table."""
    lines = []
    for table, kind in TABLES.items():
        lines.append(f"\n[{table}]  {(kind.__doc__ or '').strip()}")
        for row in settings_of(kind).values():
            choices = " | ".join(row.rule.get("choices", ()))
            help_text = row.rule["help"] + (f" ({choices})" if choices else "")
            lines.append(f"  {row.name:<24} {emit(row.default):<12} {help_text}")
    return "\n".join(lines).lstrip()


def main() -> int:
    """Print every setting; the exit status."""
    print(shown_text(describe()))
    return 0


if __name__ == "__main__":
    entry.run(main, prints_results=True)
