"""A study of mixtures: its file, its corpus, and the runs that try mixtures.

    study = read(Path("examples/reproduce/mixture/study.toml"), Study)
    corpus = MixtureCorpus.of(study)
    point = corpus.point(shares_C, "007", seed=1234)     # writes its curriculum; a run of a study

Every proxy reads the same sources by a curriculum of its own, in which each cell has its share, and
ends with the loss on the held-out text of every target. Legend: C cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep import curriculum, fingerprint
from data_prep.curriculum import Source
from data_prep.inventory import Inventory, paths, read_inventory
from data_prep.labels import Labels
from data_prep.mixing.plan import planned, sources_of
from data_prep.mixing.recipe import CellShare, Recipe, StageRecipe
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.studies.files import check_names, configure
from megatron_qwen3.studies.local import Point
from megatron_qwen3.studies.mixture.cells import LabelCell, cells
from megatron_qwen3.studies.mixture.swarm import PER_PART, fewest
from megatron_qwen3.toml import did_you_mean, emit

Array = NDArray[np.float64]

_PROXY = "proxy"  # the stage of a proxy's curriculum
_DIGITS = 9  # of a share in a recipe
_BELOW_CAPS = 1 - 1e-6  # as rounding to them may add a little


@dataclass(frozen=True)
class Study:
    """One study file.

    dir             runs are {dir}/runs/{name}; mixture.json, recipe.toml and the page stand in dir
    shards          folder with an inventory
    settings        files and key=value pairs of every proxy, as the trainer takes them
    tokens, max_epochs, sequence_length, stages   of the training that the mixture is for: with
                    several stages, each of the same length, each has a mixture of its own
    by              labels that make cells, the first one's first; those with one value drop out
    min_share       values with a smaller part of their corpus are joined to one cell
    coarse          labels, those of them that are in `by`, of the coarser mixture that the result
                    is compared with
    targets         labels of held-out text whose combinations have a loss each; empty is `by`
    objective       label -> value -> weight; a target's weight is the product, 1 where nothing is
                    said
    proxies         mixtures that are tried; 0 is three for each cell and three more
    temperature     of the swarm: the higher, the more even are mixtures in the middle of it
    pull            nats that a divergence of 1 nat from the natural mixture has to bring
    seeds           of the runs in the end that compare mixtures
    reuse           the mixture.json of an older study: cells that are as they were keep its ratios
    ranks, at_once  of each run, and how many run at the same time here (0: as cores allow)
    gpus_per_node, sbatch  of job arrays
    """

    dir: str
    shards: str
    settings: tuple[str, ...]
    tokens: float
    max_epochs: float = 4.0
    sequence_length: int = 4096
    stages: tuple[str, ...] = ("general",)
    by: tuple[str, ...] = ("domain", "quality", "education", "language", "length")
    min_share: float = 0.01
    coarse: tuple[str, ...] = ("domain",)
    targets: tuple[str, ...] = ()
    objective: dict[str, dict[str, float]] = field(default_factory=dict)
    proxies: int = 0
    temperature: float = 2.0
    pull: float = 0.01
    seeds: int = 1
    seed: int = 1234
    held_out: float = 0.001
    held_out_tokens: int = 4_000_000
    reuse: str = ""
    ranks: int = 1
    at_once: int = 0
    gpus_per_node: int = 8
    sbatch: tuple[str, ...] = ()


def check(study: Study) -> None:
    """ConfigError for the first setting that cannot be."""
    check_names(study.dir, study.stages)
    for name in ("by", "coarse", "targets"):
        for label in getattr(study, name):
            if label not in Labels._fields:
                guess = did_you_mean(label, Labels._fields)
                valid = f"valid: {', '.join(Labels._fields)}"
                raise ConfigError(f'{name}: "{label}" is no label of shards{guess}; {valid}')
    within = {"targets": study.by, "objective": study.targets or study.by}
    for name, known in within.items():
        if left := [label for label in getattr(study, name) if label not in known]:
            of = "targets" if name == "objective" else "by"
            raise ConfigError(f"{name}: {left[0]} is not one of {of} = {', '.join(known)}")
    for name in ("by", "stages", "settings"):
        if not getattr(study, name):
            raise ConfigError(f"{name} is empty")
    _check_numbers(study)


def _check_numbers(study: Study) -> None:
    above = {"tokens": 0, "max_epochs": 0, "sequence_length": 0, "temperature": 0, "seeds": 0}
    for name, low in {**above, "ranks": 0, "gpus_per_node": 0}.items():
        if not low < getattr(study, name) < math.inf:
            raise ConfigError(f"{name} = {getattr(study, name):g} must be above {low}")
    for name in ("pull", "proxies", "seed", "at_once", "held_out_tokens"):
        if not 0 <= getattr(study, name) < math.inf:
            raise ConfigError(f"{name} = {getattr(study, name):g} must be at least 0")
    for name in ("min_share", "held_out"):
        if not 0 <= getattr(study, name) < 1:
            raise ConfigError(f"{name} = {getattr(study, name):g} is not from 0 to below 1")
    if not study.held_out or not study.held_out_tokens:
        raise ConfigError("held_out is 0: without held-out text no mixture can be compared")
    weights = [w for values in study.objective.values() for w in values.values()]
    if any(not 0 <= weight < math.inf for weight in weights):
        raise ConfigError("objective: weights are numbers of at least 0")


def _check_objective(
    objective: Mapping[str, Mapping[str, float]], present: Mapping[str, set[str]]
) -> None:
    """ConfigError where a weight is of text that the shards lack, or no text has one above 0."""
    for label, weights in objective.items():
        known = present[label]
        if missing := [value for value in weights if value not in known]:
            guess = did_you_mean(missing[0], known) or f"; there are: {', '.join(sorted(known))}"
            raise ConfigError(f"objective.{label}.{missing[0]}: no text has this {label}{guess}")
        if not any(weights.get(value, 1.0) for value in known):
            raise ConfigError(f"objective: all targets have the weight 0, by objective.{label}")


@dataclass(frozen=True)
class MixtureCorpus:
    """The cells of a study's shards, and the part that proxies read.

    by: labels that decide; marks: of shards, by path; proxy: settings of all runs.
    """

    study: Study
    inventory: Inventory
    by: tuple[str, ...]
    cells: tuple[LabelCell, ...]
    marks: Mapping[str, str]
    proxy: Config

    @classmethod
    def of(cls, study: Study) -> MixtureCorpus:
        """ConfigError where the study or its shards are not sound."""
        check(study)
        inventory = read_inventory(study.shards)
        present: dict[str, set[str]] = {label: set() for label in study.by}
        for columns in inventory.columns():
            for label, values in present.items():
                values.update(columns.words[label][0])
        by = tuple(label for label in study.by if len(present[label]) > 1)
        _check_objective(study.objective, present)
        found = cells(inventory, by, study.min_share) if by else []
        if not found:
            raise ConfigError(f"by = {', '.join(study.by)}: the shards have one value of each")
        shards = paths(inventory)
        marks = fingerprint.marks([str(inventory.folder / path) for path in shards])
        proxy = configure([*study.settings, *_of_every_run(study)])
        if proxy.steps < len(study.stages):
            raise ConfigError(
                f"settings: {proxy.steps} steps of a proxy are fewer than the "
                f"{len(study.stages)} stages, each of which ends with an evaluation"
            )
        known = dict(zip(shards, marks, strict=True))
        corpus = cls(study, inventory, by, tuple(found), known, proxy)
        # Without cells of which there is too little to train on.
        full = [cell for cell, n in zip(found, corpus.tokens_C, strict=True) if n]
        return replace(corpus, cells=tuple(full))

    @property
    def targets(self) -> tuple[str, ...]:
        """Labels whose combinations have a held-out loss each."""
        return tuple(label for label in self.study.targets or self.by if label in self.by)

    @property
    def coarse(self) -> tuple[str, ...]:
        return tuple(label for label in self.study.coarse if label in self.by)

    @cached_property
    def sources(self) -> list[Source]:
        """Of proxies."""
        even_C = np.full(len(self.cells), 1 / len(self.cells))
        return sources_of(self.inventory, self._recipe_of_proxies(even_C, 0), self.marks)

    @cached_property
    def members(self) -> list[list[Source]]:
        """The sources of each cell."""
        return [[s for s in self.sources if cell.has(s.labels)] for cell in self.cells]

    @cached_property
    def tokens_C(self) -> Array:
        """That may be trained on."""
        return np.array([sum(s.training_tokens for s in own) for own in self.members], float)

    @cached_property
    def natural_C(self) -> Array:
        """Shares of the mixture in which every text is read as often as any other."""
        return np.asarray(self.tokens_C / self.tokens_C.sum())

    @cached_property
    def most_C(self) -> Array:
        """The largest shares with which neither the training nor a proxy exceeds max_epochs."""
        stage = self.study.tokens / len(self.study.stages)
        ends = [(self.study.sequence_length, stage, len(self.study.stages))]
        ends.append((self.proxy.data.sequence_length, float(self.proxy_tokens), 1))
        limits = [self._most(*end) for end in ends]
        return np.asarray(_BELOW_CAPS * np.minimum.reduce([*limits, np.ones(len(self.cells))]))

    def _most(self, sequence_length: int, tokens: float, stages: int) -> Array:
        """Of each of some stages of `tokens`; a sequence is left for rounding."""
        epochs = self.study.max_epochs
        sequences = [
            sum(math.floor(epochs * s.training_tokens / sequence_length) for s in own)
            for own in self.members
        ]
        each = np.array(sequences, float) / stages - 1
        return np.asarray(np.maximum(each, 0) * sequence_length / tokens)

    @property
    def proxy_tokens(self) -> int:
        return self.proxy.step_tokens * self.proxy.steps

    def proxies(self, parts: int) -> int:
        """How many mixtures of so many parts are tried; ConfigError for fewer than a law of them
        takes."""
        count = self.study.proxies or PER_PART * (parts + 1)
        if count < fewest(parts):
            raise ConfigError(
                f"proxies = {count} are fewer than the {fewest(parts)} that a law of {parts} cells "
                f"takes; 0 is {PER_PART} for each cell and {PER_PART} more"
            )
        return count

    def recipe(self, shares_KC: Sequence[Array]) -> Recipe:
        """Of the training: a mixture for each of its stages."""
        study = self.study
        tokens = int(study.tokens / len(study.stages))
        stages = tuple(
            StageRecipe(
                name, tokens, study.sequence_length, study.max_epochs, cells=self.rows(shares_C)
            )
            for name, shares_C in zip(study.stages, shares_KC, strict=True)
        )
        return Recipe(stages, study.seed, study.held_out, study.held_out_tokens)

    def rows(self, shares_C: Array) -> tuple[CellShare, ...]:
        """The cells of a recipe."""
        rounded_C = np.round(shares_C, _DIGITS)
        rounded_C[rounded_C.argmax()] += 1 - rounded_C.sum()
        pairs = zip(self.cells, rounded_C.tolist(), strict=True)
        return tuple(cell.row(round(share, _DIGITS)) for cell, share in pairs)

    def point(self, shares_C: Array, name: str, seed: int) -> Point:
        """A run on a mixture; its curriculum is written where it is not there yet."""
        file = Path(self.study.dir) / "curricula" / f"{name}.json"
        if not file.exists():
            recipe = self._recipe_of_proxies(shares_C, seed)
            curriculum.write(planned(self.inventory, recipe, self.sources), file)
        items = [*self.study.settings, *_of_every_run(self.study)]
        items += [f"data.curriculum={file}", f"data.stage={_PROXY}", f"run.name={name}"]
        items += [f"run.seed={seed}", f"eval.by={emit(list(self.targets))}"]
        items += [f"eval.every_steps={self.steps_of_stages[0] if self.study.stages[1:] else 0}"]
        return Point(configure(items), self.study.ranks)

    @property
    def steps_of_stages(self) -> list[int]:
        """After which each stage ends in a proxy; those before the last are evaluated there."""
        steps, stages = self.proxy.steps, len(self.study.stages)
        return [(k + 1) * (steps // stages) for k in range(stages - 1)] + [steps]

    def _recipe_of_proxies(self, shares_C: Array, seed: int) -> Recipe:
        stage = StageRecipe(
            _PROXY,
            self.proxy_tokens,
            self.proxy.data.sequence_length,
            self.study.max_epochs,
            # A label is told apart where a weight names it, also where all of its cells are joined.
            weights={label: {} for label in self.by},
            cells=self.rows(shares_C),
        )
        return Recipe((stage,), seed, self.study.held_out, self.study.held_out_tokens)


def _of_every_run(study: Study) -> Iterable[str]:
    """Settings that are the study's business."""
    yield from (f"run.dir={study.dir}/runs", "data.sources=[]")
    yield from ("checkpoint.every_steps=0", "checkpoint.at_end=false")
