"""A claim of the report, and what was found of it: `claim.found({1: Path("seed_1")}, done)`.

`Found.holds` is True or False where all that the claim needs was measured, else None.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_qwen3.config import load
from megatron_qwen3.settings import ModelConfig

if TYPE_CHECKING:
    from megatron_qwen3.pages.pictures import Picture

Seeds = Mapping[int, Path]  # a seed's folder by its number


@dataclass(frozen=True)
class Measured:
    """A number by seed: of several their mean, lowest and highest; of one its own interval."""

    name: str
    by_seed: Mapping[int, float]
    own: tuple[float, float] | None = None
    percent: bool = False

    @property
    def mean(self) -> float:
        return sum(self.by_seed.values()) / len(self.by_seed)

    @property
    def interval(self) -> tuple[float, float] | None:
        if len(self.by_seed) == 1:
            return self.own
        return min(self.by_seed.values()), max(self.by_seed.values())

    def said(self) -> tuple[str, str]:
        """The number and its interval for people."""
        between = self.interval
        shown = [self._shown(value) for value in between or ()]
        return self._shown(self.mean), " to ".join(shown) or "–"

    def _shown(self, value: float) -> str:
        if not math.isfinite(value):
            return "not reached"
        return f"{100 * value:.1f} %" if self.percent else f"{value:.4g}"


@dataclass(frozen=True)
class Found:
    """What came of a claim: a sentence, whether it holds here, numbers and pictures."""

    said: str
    holds: bool | None
    numbers: Sequence[Measured] = ()
    pictures: Sequence["Picture"] = field(default=(), repr=False)


@dataclass(frozen=True)
class Claim:
    """key: its letter; report: what the report says; parts: that make its results; runs: patterns
    of their run folders in that of a seed; measure: reads the results, FileNotFoundError where
    something of them is not there."""

    key: str
    title: str
    report: str
    parts: tuple[str, ...]
    runs: tuple[str, ...]
    measure: Callable[[Seeds], Found]

    def found(self, seeds: Seeds, done: Collection[str]) -> Found:
        """What came of the seeds whose parts are done; of a claim without any, that it was not
        measured."""
        needs = {seed: [f"{part}_{seed}" for part in self.parts] for seed in seeds}
        missing = [name for names in needs.values() for name in names if name not in done]
        whole = {s: folder for s, folder in seeds.items() if not {*needs[s]} & {*missing}}
        if not whole:
            return Found(f"Not measured: {missing[0]} is not done.", None)
        try:
            return self.measure(whole)
        except FileNotFoundError as error:
            return Found(f"Not measured: {error.filename or error} is missing.", None)


def model_of(run: Path) -> ModelConfig:
    """The settings of a run's model; FileNotFoundError where there is no such run."""
    if not (run / "config.toml").exists():
        raise FileNotFoundError(f"{run}/config.toml")
    return load([run / "config.toml"]).model


def read(path: Path) -> Any:
    """The JSON of a result; FileNotFoundError where the part that makes it has not run."""
    return json.loads(path.read_text())


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of a kind of a run's metrics.jsonl, in their order."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row.get("kind") == kind]


def accuracy(evaluation: Path, condition: str, k: int = 1) -> dict[str, float]:
    """pass@k of a condition over all tasks: value, low, high."""
    content = read(evaluation / "results.json")
    for row in content["conditions"]:
        if row["condition"] == condition and row["set"] == "all":
            found: dict[str, float] = row["pass"][str(k)]
            return found
    raise FileNotFoundError(f"{evaluation}: no condition {condition}")


def measured(name: str, found: Mapping[int, Mapping[str, float]]) -> Measured:
    """A rate of each seed with its interval over tasks."""
    values = {seed: one["value"] for seed, one in found.items()}
    first = next(iter(found.values()))
    return Measured(name, values, (first["low"], first["high"]), percent=True)


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
