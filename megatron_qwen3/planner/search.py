"""Searches the layouts of a model on a cluster, prices and ranks them.

    plans = search(Question(model, cluster, gpus=256, ...), constants)
    plans[0].step.seconds, plans[0].memory.total

Every combination of sizes that divides heads, layers, experts, ranks and batch is weighed by a
quick estimate of its memory, with the least recomputation that fits, and priced by the closed form
of its schedule. The best are then simulated, and their memory is computed to the byte.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from megatron_qwen3.parallel.layout import Layout, even_stages, row_unit
from megatron_qwen3.planner import activations, architecture, low_precision
from megatron_qwen3.planner.architecture import Architecture
from megatron_qwen3.planner.hardware import Cluster
from megatron_qwen3.planner.job import RECOMPUTED, Job
from megatron_qwen3.planner.layer_time import Constants, LayerTimer
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.planner.question import Question
from megatron_qwen3.planner.step import Step, local_parameters
from megatron_qwen3.settings import ParallelConfig
from megatron_qwen3.settings_fp8 import of_arithmetic
from megatron_qwen3.validate_fp8 import width_faults

LONG_SEQUENCE = 16384  # context parallelism is tried from here on
_VARIED = 300  # layouts that are priced with every way to exchange tokens
_SIMULATED = 60  # layouts that are priced a second time, exactly
_PLAIN = "alltoall", False  # the exchange of tokens that layers of either kind can do
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
        return _is_plain(self.job)

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
    plain = [one for one in _fastest(layouts, cluster, c) if _is_plain(one[0])]
    plain = list(itertools.islice(_exactly(question, plain), _SIMULATED // 4))
    # The last way to exchange tokens is the fastest: layouts that are slow with it are not varied.
    at_best = [(_exchanges(question, job)[-1], recompute) for job, recompute in layouts]
    at_best = _fastest(at_best, cluster, c)
    varied = [
        (job, recompute)
        for layout, recompute in itertools.islice(_exactly(question, at_best), _VARIED)
        for job in _exchanges(question, layout)
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


def candidates(question: Question) -> Iterator[Job]:
    """Every layout whose sizes divide, without recomputation and with NCCL's exchange."""
    model = architecture.of(question.model)
    pipelines = range(1, model.num_layers + 1)
    for tensor, pipeline, context in itertools.product(
        _tensor_sizes(question), pipelines, _context_sizes(question)
    ):
        ranks = tensor * pipeline * context
        allowed = question.allows("tensor", tensor) and question.allows("pipeline", pipeline)
        if question.gpus % ranks or not allowed or not _divide(question, tensor, context):
            continue
        data = question.gpus // ranks
        for micro_batch, virtual, experts in itertools.product(
            _micro_batches(question, data),
            _virtual_sizes(question, pipeline),
            _expert_sizes(question, tensor, pipeline),
        ):
            micro_batches = question.global_batch // (data * micro_batch)
            if virtual > 1 and micro_batches % pipeline:
                continue
            layout = _layout(question, tensor, pipeline, virtual, context, *experts, micro_batches)
            for precision in question.precisions:
                if _can_multiply(question, layout, precision):
                    yield _job(question, model, layout, micro_batch, precision)


def _job(
    question: Question, model: Architecture, layout: Layout, micro_batch: int, precision: str
) -> Job:
    fp8 = of_arithmetic(precision)
    if question.like:
        return replace(
            question.like,
            model=model,
            layout=layout,
            micro_batch=micro_batch,
            recompute=frozenset(),
            sequence_parallel=layout.tensor > 1,
        )
    return Job(
        model=model,
        layout=layout,
        sequence_length=question.sequence_length,
        micro_batch=micro_batch,
        precision=precision,
        fp8=fp8,
        kernels="transformer_engine" if fp8.is_on else "torch",
        own_exchange=True,
        sequence_parallel=layout.tensor > 1,
        force_balanced=question.force_balanced,
    )


def _layout(
    question: Question,
    tensor: int,
    pipeline: int,
    virtual: int,
    context: int,
    expert: int,
    expert_tensor: int,
    micro_batches: int,
) -> Layout:
    return Layout(
        world_size=question.gpus,
        tensor=tensor,
        pipeline=pipeline,
        virtual=virtual,
        expert=expert,
        expert_tensor=expert_tensor,
        context=context,
        data=question.gpus // (tensor * pipeline * context),
        expert_data=question.gpus // (expert * expert_tensor * pipeline),
        micro_batches=micro_batches,
        stage_layers=even_stages(question.model.num_layers, pipeline * virtual),
    )


def _exchanges(question: Question, job: Job) -> list[Job]:
    """The same layout with every way to exchange tokens that differs, the fastest last."""
    if job.layout.expert * job.layout.expert_tensor == 1:
        return [job]
    if job.layout.context > 1:  # Transformer Engine's layers need whole rows
        return [job]
    # Overlap needs a second micro-batch in flight on the rank, and layers that are taken apart.
    in_flight = job.layout.pipeline == 1 or job.layout.virtual > 1
    can = in_flight and not job.recompute and not job.model.tie_embeddings
    overlaps = (False, True) if can and question.dispatchers != ("alltoall",) else (False,)
    return [
        replace(
            job,
            dispatcher=dispatcher,
            overlap_exchange=overlap,
            kernels=job.kernels if (dispatcher, overlap) == _PLAIN else "transformer_engine",
        )
        for dispatcher, overlap in itertools.product(question.dispatchers, overlaps)
    ]


def _is_plain(job: Job) -> bool:
    return (job.dispatcher, job.overlap_exchange) == _PLAIN


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _tensor_sizes(question: Question) -> list[int]:
    """Sizes within an NVLink domain, with whole key-value heads."""
    model = question.model
    whole = math.gcd(model.num_query_groups, model.num_attention_heads, model.vocab_size)
    if not model.num_experts:
        whole = math.gcd(whole, model.ffn_hidden_size)
    return [n for n in _divisors(whole) if n <= question.cluster.nvlink_domain]


def _context_sizes(question: Question) -> list[int]:
    pinned = dict(question.fixed).get("context")
    if isinstance(pinned, int):
        return [pinned]
    return [1, 2, 4, 8] if question.sequence_length >= LONG_SEQUENCE else [1]


def _divide(question: Question, tensor: int, context: int) -> bool:
    """Whether context ranks can split a row, and tensor ranks one of its parts."""
    unit, _ = row_unit(ParallelConfig(tensor=tensor, context=context))
    return question.sequence_length % unit == 0


def _can_multiply(question: Question, layout: Layout, precision: str) -> bool:
    """Whether a precision's products allow the sizes of rows and matrices on a rank."""
    fp8 = of_arithmetic(precision)
    p = ParallelConfig(
        tensor=layout.tensor, context=layout.context, expert_tensor=layout.expert_tensor
    )
    unit, _ = row_unit(p, fp8)
    return not fp8.is_on or not (
        question.sequence_length % unit or any(width_faults(question.model, p, fp8))
    )


def _micro_batches(question: Question, data: int) -> list[int]:
    sizes = [n for n in (1, 2, 4, 8) if question.global_batch % (data * n) == 0]
    return [n for n in sizes if question.allows("micro_batch", n)]


def _virtual_sizes(question: Question, pipeline: int) -> list[int]:
    layers = question.model.num_layers
    sizes = (1, 2, 3, 4, 6, 8, 12) if pipeline > 1 else (1,)
    fitting = [n for n in sizes if n == 1 or pipeline * n <= layers]
    return [n for n in fitting if question.allows("virtual", n)]


def _expert_sizes(question: Question, tensor: int, pipeline: int) -> list[tuple[int, int]]:
    model = question.model
    pairs = itertools.product(_divisors(model.num_experts or 1), sorted({1, tensor}))
    return [
        (expert, width)
        for expert, width in pairs
        if question.gpus % (expert * width * pipeline) == 0
        and (model.expert_ffn_hidden_size % width == 0 if model.num_experts else width == 1)
        and question.allows("expert", expert)
        and question.allows("expert_tensor", width)
    ]


def tokens_per_step(job: Job) -> int:
    """Tokens of one optimizer step over all ranks."""
    layout = job.layout
    return layout.micro_batches * layout.data * job.micro_batch * job.sequence_length


def quick_bytes(job: Job) -> float:
    """Memory of the pipeline rank that needs most, without padding."""
    layout, model = job.layout, job.model
    chunk = activations.layer_bytes(job, model.num_layers - 1) / layout.virtual
    held = [_in_flight(layout, rank) * n * chunk for rank, n in enumerate(_rank_layers(job))]
    held[-1] += activations.logits_bytes(job)
    dense, sparse = local_parameters(job, held.index(max(held)))
    state = float((dense + sparse) * (job.weight_bytes + job.gradient_bytes))
    per_owned = (job.moment_bytes + (0 if job.precision == "fp32" else 4)) * (1 - job.offload)
    state += per_owned * dense / (layout.data * layout.context)
    state += per_owned * sparse / layout.expert_data
    state += low_precision.bytes_beside(job, range(max(_rank_layers(job))))
    block = max(activations.mlp_bytes(job, model.num_layers - 1), activations.exchange_bytes(job))
    return state + 1.03 * (max(held) + block) + 1.5e9


def _in_flight(layout: Layout, rank: int) -> int:
    """Model chunks of micro-batches that a pipeline rank holds at once."""
    chunks = layout.pipeline - rank
    if layout.virtual > 1:
        chunks = 2 * chunks - 1 + (layout.virtual - 1) * layout.pipeline
    return min(chunks, layout.micro_batches * layout.virtual)


def _rank_layers(job: Job) -> list[int]:
    """Layers of each pipeline rank."""
    split, p = job.layout.stage_layers, job.layout.pipeline
    return [sum(split[rank::p]) for rank in range(p)]


def quick_seconds(job: Job, cluster: Cluster, c: Constants) -> float:
    """(m + (p - 1) / v) times the layers of a stage, and the logits."""
    timer, layout = LayerTimer(job, cluster, c), job.layout
    forward, backward = timer.layer(job.model.num_layers - 1)
    concurrency = c["concurrency"]
    layer = forward.total(concurrency) + backward.total(concurrency)
    stage = layer * max(_rank_layers(job))
    rounds = layout.micro_batches + (layout.pipeline - 1) / layout.virtual
    logits = 3 * timer.logits()
    return rounds * (stage + (logits if layout.pipeline == 1 else 0.5 * logits))
