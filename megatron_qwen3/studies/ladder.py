"""Lays out a ladder of small runs, from which laws of loss, learning rate and batch are fitted.

    ladder = read(Path("examples/studies/ladder_cpu.toml"), Ladder)
    for stage in ladder.stages:
        local.run_all(points(ladder, stage), stage.name)

A stage has one or more grids: models × tokens (or compute) × learning rates × batches. Every point
is a whole run with the schedule of its own length, since a law of loss over tokens needs losses at
the end of a decay (arXiv 2203.15556, appendix B). A stage that comes `after` another starts, per
model, from the weights of that stage's run with the lowest loss.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from megatron_qwen3.config import ConfigError
from megatron_qwen3.model.flops import flops_per_token
from megatron_qwen3.studies import measurements
from megatron_qwen3.studies.files import check_names, configure
from megatron_qwen3.studies.local import Point
from megatron_qwen3.training.console import count


@dataclass(frozen=True)
class Grid:
    """models: names, all of the ladder if empty; either tokens or compute (in FLOP) of a run.

    settings: of these runs alone, read after those of stage and model: a batch of 2 sequences has
    no micro-batch of 8
    """

    lr: tuple[float, ...]
    global_batch: tuple[int, ...]
    tokens: tuple[float, ...] = ()
    compute: tuple[float, ...] = ()
    models: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class LadderStage:
    """settings: files and key=value pairs as the trainer takes them."""

    name: str
    settings: tuple[str, ...]
    grids: tuple[Grid, ...]
    after: str = ""


@dataclass(frozen=True)
class Ladder:
    """models: name -> files and key=value pairs, read after those of the stage.

    dir           runs are {dir}/{stage}/{point}
    ranks         of every run
    gpus_per_node, sbatch  of its job arrays; sbatch: further options, "--partition=gpu"
    warmup_share  of the steps; final_lr_share: min_lr over lr
    """

    dir: str
    models: dict[str, tuple[str, ...]]
    stages: tuple[LadderStage, ...]
    ranks: int = 1
    gpus_per_node: int = 8
    sbatch: tuple[str, ...] = ()
    warmup_share: float = 0.1
    final_lr_share: float = 0.1


def points(ladder: Ladder, stage: LadderStage) -> list[Point]:
    """The runs of one stage, smallest first; a run that two grids share stands once.

    ConfigError: a grid is not complete, settings are wrong, or the stage before has no runs yet.
    """
    check_names(ladder.dir, [stage.name, *ladder.models])
    found: dict[str, Point] = {}
    for grid in stage.grids:
        for model in _models(ladder, stage, grid):
            for point in _grid_points(ladder, stage, grid, model):
                if found.setdefault(point.name, point) != point:
                    raise ConfigError(f"stage {stage.name}: two points are named {point.name}")
    return sorted(found.values(), key=lambda point: point.work)


def _models(ladder: Ladder, stage: LadderStage, grid: Grid) -> tuple[str, ...]:
    unknown = [model for model in grid.models if model not in ladder.models]
    if unknown:
        known = ", ".join(ladder.models)
        raise ConfigError(
            f"stage {stage.name}: {unknown[0]} is no model of the ladder; valid: {known}"
        )
    return grid.models or tuple(ladder.models)


def _grid_points(ladder: Ladder, stage: LadderStage, grid: Grid, model: str) -> Iterator[Point]:
    if bool(grid.tokens) == bool(grid.compute):
        raise ConfigError(f"stage {stage.name}: a grid has either tokens or compute")
    base = [*stage.settings, *ladder.models[model], *_start(ladder, stage, model)]
    base += [*grid.settings, f"run.dir={ladder.dir}/{stage.name}"]
    for batch, lr in itertools.product(grid.global_batch, grid.lr):
        for budget in grid.tokens or grid.compute:
            yield _point(ladder, model, base, lr, batch, budget, bool(grid.tokens))


def _point(
    ladder: Ladder,
    model: str,
    base: list[str],
    lr: float,
    batch: int,
    budget: float,
    in_tokens: bool,
) -> Point:
    rest = [f"optim.lr={lr!r}", f"optim.min_lr={lr * ladder.final_lr_share!r}"]
    rest += [f"train.global_batch={batch}", "train.tokens=0", "train.steps=1"]
    config = configure([*base, *rest, "optim.warmup_steps=0"])
    per_token = flops_per_token(config.model, config.data.sequence_length)
    tokens = budget if in_tokens else budget / per_token
    steps = max(1, round(tokens / config.step_tokens))
    warmup = min(steps, math.ceil(ladder.warmup_share * steps))
    # Named by the given amount: with two batches the same tokens are not quite as many.
    amount = f"{count(budget)}" if in_tokens else f"{budget:.3g}FLOP"
    name = f"{model}-{amount}-lr{lr:g}-b{batch}"
    rest += [f"run.name={name}", f"train.steps={steps}", f"optim.warmup_steps={warmup}"]
    return Point(configure([*base, *rest]), ladder.ranks)


def _start(ladder: Ladder, stage: LadderStage, model: str) -> list[str]:
    """The setting that starts a run from the best run of the stage before."""
    if not stage.after:
        return []
    before = [other for other in ladder.stages if other.name == stage.after]
    if not before:
        known = ", ".join(other.name for other in ladder.stages)
        raise ConfigError(f"stage {stage.name}: after = {stage.after!r} is no stage; {known} are")
    of_model = [
        point
        for grid in before[0].grids
        if model in _models(ladder, before[0], grid)
        for point in _grid_points(ladder, before[0], grid, model)
    ]
    done = {point.config.run_dir for point in of_model if point.is_done}
    if not done:
        raise ConfigError(
            f"stage {stage.name}: no run of {model} in stage {stage.after} is done yet"
        )
    best = min(done, key=lambda folder: measurements.read_run(folder).loss)
    return [f"checkpoint.init_from={best}"]
