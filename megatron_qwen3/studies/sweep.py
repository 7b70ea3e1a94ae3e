"""Lays out a scaling study: models × layouts × GPU counts, with constant work per GPU or in all.

    sweep = read(Path("examples/studies/sweep_cpu.toml"), Sweep)
    cases, left_out = plan(sweep)
    local.run_all([case.point for case in cases], "sweep")      # or slurm.write(sweep, cases)

A layout fixes some numbers of ranks; the ranks that are left are data parallel. A layout that does
not fit a GPU count is left out with its reason. `efficiency.py` reads the runs afterwards.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from megatron_qwen3.config import ConfigError
from megatron_qwen3.parallel.layout import check_world_size
from megatron_qwen3.planner import calibration, hardware
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.step import Step
from megatron_qwen3.studies.files import check_names, configure
from megatron_qwen3.studies.local import Point

WEAK, STRONG = "weak", "strong"


@dataclass(frozen=True)
class Sweep:
    """One study file.

    dir                 runs are {dir}/{model}-{layout}-{gpus}gpu-{global batch}
    settings            files and key=value pairs of every run, as the trainer takes them
    models, layouts     name -> further files and key=value pairs
    scaling             weak: sequences_per_gpu are constant; strong: global_batch is
    steps, warm_up_steps   of a run, and how many of them are not measured
    gpus_per_node, sbatch  of the job arrays; sbatch: further options, "--partition=gpu"
    hardware            a GPU of the planner or a cluster's TOML, for predictions; "" for none
    price_per_gpu_hour  in any currency; 0 for none
    """

    dir: str
    settings: tuple[str, ...]
    models: dict[str, tuple[str, ...]]
    layouts: dict[str, tuple[str, ...]]
    gpus: tuple[int, ...]
    scaling: tuple[str, ...] = (WEAK, STRONG)
    sequences_per_gpu: int = 0
    global_batch: int = 0
    steps: int = 20
    warm_up_steps: int = 5
    gpus_per_node: int = 8
    sbatch: tuple[str, ...] = ()
    hardware: str = ""
    price_per_gpu_hour: float = 0.0


@dataclass(frozen=True)
class Case:
    """One point of one curve; weak and strong scaling may share a run."""

    scaling: str
    model: str
    layout: str
    gpus: int
    point: Point

    @property
    def curve(self) -> tuple[str, str, str]:
        """Scaling, model and layout, which all points of a curve share."""
        return self.scaling, self.model, self.layout


def plan(sweep: Sweep) -> tuple[list[Case], list[str]]:
    """The cases, by curve and rising GPU count, and why others are left out.

    ConfigError: the study itself is wrong, or nothing fits.
    """
    _check(sweep)
    cases: list[Case] = []
    unfit: dict[tuple[str, str], list[str]] = defaultdict(list)
    for scaling, model, layout in itertools.product(sweep.scaling, sweep.models, sweep.layouts):
        for gpus in sorted(set(sweep.gpus)):
            try:
                point = _point(sweep, scaling, model, layout, gpus)
            except ConfigError as error:
                unfit[f"{model}, {layout}, {scaling}", str(error)].append(str(gpus))
            else:
                cases.append(Case(scaling, model, layout, gpus, point))
    left_out = [f"{of} on {', '.join(on)} GPUs: {why}" for (of, why), on in unfit.items()]
    if not cases:
        raise ConfigError("no layout fits any GPU count:\n" + "\n".join(left_out))
    return cases, left_out


def predictor(sweep: Sweep) -> Callable[[Case], float] | None:
    """Seconds per step that the planner expects of a case; None where no hardware is named."""
    if not sweep.hardware:
        return None
    cluster, constants = hardware.load(sweep.hardware), calibration.load()
    return lambda case: Step.of(Job.of(case.point.config, case.gpus), cluster, constants).seconds


def _check(sweep: Sweep) -> None:
    predictor(sweep)  # hardware that is not known is told now, not when all runs are done
    for name, of in ((WEAK, "sequences_per_gpu"), (STRONG, "global_batch")):
        if name in sweep.scaling and getattr(sweep, of) < 1:
            raise ConfigError(f"{of} must be set for {name} scaling")
    for name in sweep.scaling:
        if name not in (WEAK, STRONG):
            raise ConfigError(f'scaling = "{name}" is not one of {WEAK}, {STRONG}')
    for field in ("models", "layouts", "gpus", "scaling"):
        if not getattr(sweep, field):
            raise ConfigError(f"{field} is empty: the study has no points")
    check_names(sweep.dir, [*sweep.models, *sweep.layouts])
    if min(sweep.gpus) < 1:
        raise ConfigError(f"gpus = {list(sweep.gpus)}: a run has at least 1")
    if not 0 <= sweep.warm_up_steps < sweep.steps:
        raise ConfigError(
            f"warm_up_steps = {sweep.warm_up_steps} leaves nothing of steps = {sweep.steps} to "
            "measure"
        )


def _point(sweep: Sweep, scaling: str, model: str, layout: str, gpus: int) -> Point:
    """The run; ConfigError where model, layout and GPU count do not go together."""
    batch = sweep.global_batch if scaling == STRONG else sweep.sequences_per_gpu * gpus
    items = [*sweep.settings, *sweep.models[model], *sweep.layouts[layout]]
    items += [f"run.dir={sweep.dir}", f"run.name={model}-{layout}-{gpus}gpu-{batch}"]
    items += [f"train.global_batch={batch}", "train.tokens=0", f"train.steps={sweep.steps}"]
    # Steps are measured and nothing else: no evaluation, no checkpoint, any rate.
    items += ["optim.warmup_steps=0", "optim.decay_steps=0", "optim.schedule=constant"]
    items += ["data.held_out=0", "checkpoint.every_steps=0", "checkpoint.at_end=false"]
    config = configure(items)
    check_world_size(config, gpus)
    return Point(config, gpus)
