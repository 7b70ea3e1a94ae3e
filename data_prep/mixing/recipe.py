"""The recipe of a curriculum: what each stage is made of, as a TOML file that people edit.

    recipe = load("examples/curriculum.toml", ["general.tokens=2e9"])

`examples/curriculum.toml` explains every key. Everything wrong is a ConfigError that says where it
stands and what would be right; what labels there are only the inventory knows: `plan.py` asks it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from data_prep.labels import Labels
from megatron_qwen3.config import ConfigError, did_you_mean

NATURAL, TEMPERATURE, UNIMAX = SAMPLINGS = ("natural", "temperature", "unimax")


@dataclass(frozen=True)
class StageRecipe:
    """One stage.

    tokens: its length; max_epochs: how often any text may have been read when it ends, stages
    before included; languages: how tokens are shared among languages, with `temperature`;
    weights: per label and value, how much likelier a token is than by its number alone;
    shares: per value of one label, the fraction of the stage's tokens.
    """

    name: str
    tokens: int
    sequence_length: int = 4096
    max_epochs: float = 4.0
    languages: str = NATURAL
    temperature: float = 1.0
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """The stages in order. Of each source the last `held_out` of its tokens, but at most
    `held_out_tokens`, are never trained on."""

    stages: tuple[StageRecipe, ...]
    seed: int = 1234
    held_out: float = 0.001
    held_out_tokens: int = 4_000_000

    @property
    def labels(self) -> set[str]:
        """The labels that decide something in any stage."""
        return {label for stage in self.stages for label in (*stage.weights, *stage.shares)}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file with `STAGE.KEY=VALUE` or `KEY=VALUE` pairs put in place of what it says."""
    try:
        tree = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        _put(tree, override)
    return _recipe(tree, str(path))


def _put(tree: dict[str, Any], override: str) -> None:
    name, equals, text = (part.strip() for part in override.partition("="))
    if not equals:
        raise ConfigError(f"command line: {override!r} is not key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text  # a bare word
    *tables, leaf = name.split(".")
    if tables and tables[0] != "stages":
        tables.insert(0, "stages")
    place = tree
    for depth, table in enumerate(tables):
        if depth < 2 and table not in place:  # no typing error may start a new stage
            raise ConfigError(
                f"command line: {name}: there is no stage {table}{did_you_mean(table, place)}"
            )
        place = place.setdefault(table, {})
        if not isinstance(place, dict):
            raise ConfigError(f"command line: {name}: {table} is a value, not a table")
    place[leaf] = value


def _recipe(tree: Mapping[str, Any], path: str) -> Recipe:
    known = [f.name for f in fields(Recipe)]
    _check_keys(tree, known, path, "")
    stages = tree.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(f"{path}: no stages; write [stages.general] and what it is made of")
    recipe = Recipe(
        stages=tuple(_stage(name, table, path) for name, table in stages.items()),
        seed=_whole(tree.get("seed", Recipe.seed), f"{path}: seed", least=0),
        held_out=_number(tree.get("held_out", Recipe.held_out), f"{path}: held_out"),
        held_out_tokens=_whole(
            tree.get("held_out_tokens", Recipe.held_out_tokens), f"{path}: held_out_tokens", least=0
        ),
    )
    if not recipe.held_out < 1:
        raise ConfigError(f"{path}: held_out = {recipe.held_out} must be below 1")
    return recipe


def _stage(name: str, table: Any, path: str) -> StageRecipe:
    where = f"{path}: stages.{name}"
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is a table; write [stages.{name}]")
    known = [f.name for f in fields(StageRecipe) if f.name != "name"]
    _check_keys(table, known, path, f"stages.{name}.")
    if "tokens" not in table:
        raise ConfigError(f"{where}.tokens is missing: how long is the stage?")
    languages = table.get("languages", NATURAL)
    if languages not in SAMPLINGS:
        raise ConfigError(f"{where}.languages = {languages!r} is not one of {', '.join(SAMPLINGS)}")
    if "temperature" in table and languages != TEMPERATURE:
        raise ConfigError(
            f'{where}.temperature goes with languages = "{TEMPERATURE}", not "{languages}"'
        )
    length = table.get("sequence_length", StageRecipe.sequence_length)
    stage = StageRecipe(
        name=name,
        tokens=_whole(table["tokens"], f"{where}.tokens", least=1),
        sequence_length=_whole(length, f"{where}.sequence_length", least=1),
        max_epochs=_number(table.get("max_epochs", StageRecipe.max_epochs), f"{where}.max_epochs"),
        languages=languages,
        temperature=_number(table.get("temperature", 1.0), f"{where}.temperature"),
        weights=_by_label(table.get("weights", {}), f"{where}.weights"),
        shares=_by_label(table.get("shares", {}), f"{where}.shares"),
    )
    _check_stage(stage, where)
    return stage


def _check_stage(stage: StageRecipe, where: str) -> None:
    if stage.tokens < stage.sequence_length:
        raise ConfigError(
            f"{where}.tokens = {stage.tokens:,} is less than one sequence of "
            f"{stage.sequence_length:,}"
        )
    for key in ("max_epochs", "temperature"):
        if not getattr(stage, key) > 0:
            raise ConfigError(f"{where}.{key} = {getattr(stage, key)} must be above 0")
    if len(stage.shares) > 1:
        raise ConfigError(
            f"{where}.shares has fractions of {' and of '.join(stage.shares)}; only one label can "
            "have fractions, use weights for the others"
        )
    for label, shares in stage.shares.items():
        if abs(sum(shares.values()) - 1) > 1e-6:
            raise ConfigError(f"{where}.shares.{label} adds up to {sum(shares.values()):g}, not 1")


def _by_label(table: Any, where: str) -> dict[str, dict[str, float]]:
    """{label: {value: number}}; the labels are those that shards have."""
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is a table; write [{where.partition(': ')[2]}.domain]")
    for label, values in table.items():
        if label not in Labels._fields:
            raise ConfigError(
                f"{where}.{label}: no label of shards{did_you_mean(label, Labels._fields)}; "
                f"valid: {', '.join(Labels._fields)}"
            )
        if not isinstance(values, dict):
            raise ConfigError(f"{where}.{label} is a table of values and numbers")
    return {
        label: {v: _number(number, f"{where}.{label}.{v}") for v, number in values.items()}
        for label, values in table.items()
    }


def _check_keys(table: Mapping[str, Any], known: Iterable[str], path: str, prefix: str) -> None:
    known = list(known)
    for key in table:
        if key not in known:
            guess = did_you_mean(key, known)
            raise ConfigError(f"{path}: {prefix}{key} is no key{guess}; valid: {', '.join(known)}")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e30:
        raise ConfigError(f"{where} = {value!r} is not a number of at least 0")
    return float(value)


def _whole(value: Any, where: str, least: int) -> int:
    number = _number(value, where)
    if not number.is_integer() or number < least:
        raise ConfigError(f"{where} = {value!r} is not a whole number of at least {least}")
    return int(value)
