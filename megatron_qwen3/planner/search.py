"""Searches the layouts of a model on a cluster, prices and ranks them.

    plans = search(Question(model, cluster, gpus=256, ...), constants)
    plans[0].step.seconds, plans[0].memory.total

Every combination of sizes that divides heads, layers, experts, ranks and batch is weighed by a
quick estimate of its memory, with the least recomputation that fits, and priced by the closed form
of its schedule. The best are then simulated, and their memory is computed to the byte.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from megatron_qwen3.parallel.layout import even_stages
from megatron_qwen3.planner.candidates import candidates, exchanges, is_plain
from megatron_qwen3.planner.hardware import Cluster
from megatron_qwen3.planner.job import RECOMPUTED, Job
from megatron_qwen3.planner.layer_time import Constants
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.planner.question import Question
from megatron_qwen3.planner.quick import quick_bytes, quick_seconds, tokens_per_step
from megatron_qwen3.planner.step import Step

_VARIED = 300  # layouts that are priced with every way to exchange tokens
_SIMULATED = 60  # layouts that are priced a second time, exactly
_DAY_SECONDS = 86_400
_USABLE = 0.97  # of device memory: the rest is for the driver and for short peaks


@dataclass(frozen=True)
class LayoutPlan:
    """One layout with its memory and its time."""

    job: Job
    recompute: str
    memory: Memory
    step: Step
    fits: bool

    @property
    def needs(self) -> list[str]:
        """Packages that it needs besides torch and megatron-core."""
        job, needs = self.job, []
        if job.model.num_experts and job.dispatcher != "alltoall":
            needs.append("DeepEP")
        if not self.is_plain or job.fp8.is_on:
            needs.append("Transformer Engine")
        return needs

    @property
    def is_plain(self) -> bool:
        """Whether tokens reach their experts by NCCL, without overlap."""
        return is_plain(self.job)

    def mfu(self, cluster: Cluster) -> float:
        """Share of the dense peak of its precision."""
        return self.step.tflops_per_gpu * 1e12 / cluster.peak_flops(self.job.precision)

    def days(self, tokens: float) -> float:
        """Days that a budget of tokens takes."""
        gpus = self.job.layout.world_size
        return tokens / (self.step.tokens_per_second_per_gpu * gpus) / _DAY_SECONDS


def search(question: Question, c: Constants, count: int = 10) -> list[LayoutPlan]:
    """The `count` fastest layouts that fit, then the fastest plain one if none of them is.
    Empty where none fits."""
    cluster = question.cluster
    layouts = list(fitting(question))
    plain = [one for one in _fastest(layouts, cluster, c) if is_plain(one[0])]
    plain = list(itertools.islice(_exactly(question, plain), _SIMULATED // 4))
    # The last way to exchange tokens is the fastest: layouts that are slow with it are not varied.
    at_best = [(exchanges(question, job)[-1], recompute) for job, recompute in layouts]
    at_best = _fastest(at_best, cluster, c)
    varied = [
        (job, recompute)
        for layout, recompute in itertools.islice(_exactly(question, at_best), _VARIED)
        for job in exchanges(question, layout)
    ]
    fastest = _fastest(varied, cluster, c)[:_SIMULATED]
    plans = [plan(*one, cluster, c) for one in dict.fromkeys([*fastest, *plain])]
    plans = _distinct(sorted((p for p in plans if p.fits), key=_slowness))
    best = plans[:count]
    if not any(p.is_plain for p in best):
        best += [p for p in plans if p.is_plain][:1]
    return sorted((relieved(p, cluster, c) for p in best), key=_slowness)


def _fastest(jobs: list[tuple[Job, str]], cluster: Cluster, c: Constants) -> list[tuple[Job, str]]:
    """The fastest first, by the closed form."""
    return sorted(jobs, key=lambda one: quick_seconds(one[0], cluster, c) / tokens_per_step(one[0]))


def _slowness(plan: LayoutPlan) -> float:
    return -plan.step.tokens_per_second_per_gpu


def _distinct(plans: list[LayoutPlan]) -> list[LayoutPlan]:
    """The best of plans that differ only in micro-batch and virtual stages; one that exchanges
    tokens plainly stands beside one that does not."""
    seen = set()
    kept = []
    for one in plans:
        layout = one.job.layout
        sizes = (layout.tensor, layout.pipeline, layout.context, layout.expert)
        how = one.recompute, one.job.precision, tuple(one.needs), one.is_plain
        key = sizes, layout.expert_tensor, how
        if key not in seen:
            seen.add(key)
            kept.append(one)
    return kept


def relieved(given: LayoutPlan, cluster: Cluster, c: Constants) -> LayoutPlan:
    """The plan, with one or two layers moved away from the stage that has the logits if it pays."""
    plans, layout = [given], given.job.layout
    for moved in (1, 2) if layout.pipeline > 1 else ():
        split = even_stages(given.job.model.num_layers + moved, len(layout.stage_layers))
        if split[-1] > moved:
            split = (*split[:-1], split[-1] - moved)
            job = replace(given.job, layout=replace(layout, stage_layers=split))
            plans.append(plan(job, given.recompute, cluster, c))
    return min(plans, key=lambda plan: (not plan.fits, plan.step.seconds))


def plan(job: Job, recompute: str, cluster: Cluster, c: Constants) -> LayoutPlan:
    """A job with its exact memory and time."""
    memory = Memory.of(job)
    fits = memory.total <= usable_bytes(cluster)
    return LayoutPlan(job, recompute, memory, Step.of(job, cluster, c), fits)


def usable_bytes(cluster: Cluster) -> float:
    """Bytes of a GPU's memory that a run may use."""
    return _USABLE * cluster.memory_bytes


def fitting(question: Question) -> Iterator[tuple[Job, str]]:
    """Every layout that seems to fit, with the least recomputation that makes it and NCCL's
    exchange of tokens."""
    for job in candidates(question):
        for recompute, parts in RECOMPUTED.items():
            if not question.allows("recompute", recompute):
                continue
            tried = replace(job, recompute=parts)
            if quick_bytes(tried) <= usable_bytes(question.cluster):
                yield tried, recompute
                break


def _exactly(question: Question, jobs: Iterable[tuple[Job, str]]) -> Iterator[tuple[Job, str]]:
    """Those of `jobs` that fit to the byte, with more recomputation where needed."""
    for job, least in jobs:
        levels = [*RECOMPUTED][[*RECOMPUTED].index(least) :]
        for recompute in (name for name in levels if question.allows("recompute", name)):
            tried = replace(job, recompute=RECOMPUTED[recompute])
            if Memory.of(tried).total <= usable_bytes(question.cluster):
                yield tried, recompute
                break


def least_memory(question: Question) -> tuple[Job, str] | None:
    """The layout that needs the least memory; None where no layout divides."""
    tried = [
        (replace(job, recompute=parts), name)
        for job in candidates(question)
        for name, parts in RECOMPUTED.items()
        if question.allows("recompute", name)
    ]
    leanest = sorted(tried, key=lambda one: quick_bytes(one[0]))[:_SIMULATED]
    return min(leanest, key=lambda one: Memory.of(one[0]).total, default=None)


def fewest_gpus(question: Question) -> tuple[int, Job] | None:
    """The first doubling of GPUs at which a layout fits, with one; None up to 64-fold."""
    for times in (2, 4, 8, 16, 32, 64):
        gpus = question.gpus * times
        batch = -(-question.global_batch // gpus) * gpus
        larger = replace(question, gpus=gpus, global_batch=batch)
        if next(fitting(larger), None) is None:
            continue
        leanest = least_memory(larger)
        if leanest and Memory.of(leanest[0]).total <= usable_bytes(question.cluster):
            return gpus, leanest[0]
    return None
