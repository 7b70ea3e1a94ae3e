"""Reads the recipe of a curriculum, the mixture of each stage, a TOML file that people edit.

    recipe = load("examples/curriculum.toml", ["general.tokens=2e9"])

`examples/curriculum.toml` explains every key. Everything wrong is a ConfigError that names the
place and valid values; the labels themselves are only known to the inventory: `plan.py` checks
them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from data_prep.labels import Labels
from megatron_qwen3.config import ConfigError
from megatron_qwen3.toml import as_kind, check_keys, did_you_mean, parse_value, read_toml

_MOST = 1e30  # of any number here
NATURAL, TEMPERATURE, UNIMAX = SAMPLINGS = ("natural", "temperature", "unimax")


@dataclass(frozen=True)
class CellShare:
    """The fraction of a stage's tokens that text with these labels has; any value where none is
    named. A row of `cells`, which says more than weights can: how labels go together."""

    share: float
    source: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    domain: tuple[str, ...] = ()
    quality: tuple[str, ...] = ()
    education: tuple[str, ...] = ()
    length: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The values that are named, by label."""
        return {name: values for name in Labels._fields if (values := getattr(self, name))}

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether text with these labels belongs to it."""
        return all(labels[name] in values for name, values in self.labels.items())


@dataclass(frozen=True)
class StageRecipe:
    """One stage.

    tokens: its length; max_epochs: how often any text may have been read when it ends, stages
    before included; languages: how tokens are shared among languages, with `temperature`;
    weights: per label and value, how much likelier a token is than by its number alone;
    shares: per value of one label, the fraction of the stage's tokens; cells: the same for texts
    whose labels go together, in place of shares.
    """

    name: str
    tokens: int
    sequence_length: int = 4096
    max_epochs: float = 4.0
    languages: str = NATURAL
    temperature: float = 1.0
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    shares: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    cells: tuple[CellShare, ...] = ()

    @property
    def labels(self) -> set[str]:
        """The labels that it uses."""
        return {*self.weights, *self.shares, *(name for cell in self.cells for name in cell.labels)}


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
        """The labels that any stage uses."""
        return {label for stage in self.stages for label in stage.labels}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe file with the values of `STAGE.KEY=VALUE` or `KEY=VALUE` pairs in place of its
    own."""
    tree = read_toml(path, "a recipe")
    for override in overrides:
        _put(tree, override)
    return _recipe(tree, str(path))


def _put(tree: dict[str, Any], override: str) -> None:
    name, equals, text = (part.strip() for part in override.partition("="))
    if not equals:
        raise ConfigError(f"command line: {override!r} is not key=value")
    try:
        value = parse_value(text)
    except ValueError:
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
    check_keys(tree, [f.name for f in fields(Recipe)], path)
    stages = tree.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise ConfigError(f"{path}: no stages; write [stages.general] and its mixture")
    found = tuple(_stage(name, table, path) for name, table in stages.items())
    recipe: Recipe = replace(as_kind({**tree, "stages": []}, Recipe, path), stages=found)
    for key in ("seed", "held_out", "held_out_tokens"):
        if not getattr(recipe, key) >= 0:
            raise ConfigError(f"{path}: {key} = {getattr(recipe, key)} must be at least 0")
    if not recipe.held_out < 1:
        raise ConfigError(f"{path}: held_out = {recipe.held_out} must be below 1")
    return recipe


def _stage(name: str, table: Any, path: str) -> StageRecipe:
    where = f"{path}: stages.{name}"
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is a table; write [stages.{name}]")
    check_keys(
        table, [f.name for f in fields(StageRecipe) if f.name != "name"], path, f"stages.{name}"
    )
    if "tokens" not in table:
        raise ConfigError(f"{where}.tokens is missing: how long is the stage?")
    stage: StageRecipe = as_kind({**table, "name": name}, StageRecipe, path, f"stages.{name}")
    _check_stage(stage, where)
    if "temperature" in table and stage.languages != TEMPERATURE:
        raise ConfigError(
            f'{where}.temperature goes with languages = "{TEMPERATURE}", not "{stage.languages}"'
        )
    for key in ("weights", "shares"):
        _check_labels(getattr(stage, key), f"{where}.{key}")
    for label, shares in stage.shares.items():
        if abs(sum(shares.values()) - 1) > 1e-6:
            raise ConfigError(f"{where}.shares.{label} adds up to {sum(shares.values()):g}, not 1")
    _check_cells(stage, where)
    return stage


def _check_cells(stage: StageRecipe, where: str) -> None:
    if not stage.cells:
        return
    if stage.shares:
        raise ConfigError(f"{where} has cells and shares; only one of them gives fractions")
    for number, cell in enumerate(stage.cells):
        if not 0 <= cell.share <= 1:
            raise ConfigError(f"{where}.cells[{number}].share = {cell.share:g} is not from 0 to 1")
    if abs(sum(cell.share for cell in stage.cells) - 1) > 1e-6:
        total = sum(cell.share for cell in stage.cells)
        raise ConfigError(f"{where}.cells: their shares add up to {total:g}, not 1")


def _check_stage(stage: StageRecipe, where: str) -> None:
    if stage.languages not in SAMPLINGS:
        raise ConfigError(
            f"{where}.languages = {stage.languages!r} is not one of {', '.join(SAMPLINGS)}"
        )
    for key in ("tokens", "sequence_length", "max_epochs", "temperature"):
        if not 0 < getattr(stage, key) < _MOST:
            raise ConfigError(
                f"{where}.{key} = {getattr(stage, key)} must be above 0, and below {_MOST:g}"
            )
    if stage.tokens < stage.sequence_length:
        raise ConfigError(
            f"{where}.tokens = {stage.tokens:,} is less than one sequence of "
            f"{stage.sequence_length:,}"
        )
    if len(stage.shares) > 1:
        raise ConfigError(
            f"{where}.shares has fractions of {' and of '.join(stage.shares)}; only one label can "
            "have fractions, use weights for the others"
        )


def _check_labels(table: Mapping[str, Mapping[str, float]], where: str) -> None:
    """{label: {value: number}}; the labels are those that shards have."""
    for label, values in table.items():
        if label not in Labels._fields:
            raise ConfigError(
                f"{where}.{label}: no label of shards{did_you_mean(label, Labels._fields)}; "
                f"valid: {', '.join(Labels._fields)}"
            )
        for value, number in values.items():
            if not 0 <= number < _MOST:
                raise ConfigError(
                    f"{where}.{label}.{value} = {number:g} is not a number of at least 0"
                )
