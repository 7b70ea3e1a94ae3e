"""Lists the layouts of a model on a cluster whose sizes divide: `candidates(question)`.

Sizes divide heads, layers, experts, ranks and batch; with each layout go the ways to exchange
tokens between experts (`exchanges`).
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from megatron_qwen3.parallel.layout import Layout, even_stages, row_unit
from megatron_qwen3.planner import architecture
from megatron_qwen3.planner.architecture import Architecture
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.question import Question
from megatron_qwen3.settings import ParallelConfig
from megatron_qwen3.settings_fp8 import of_arithmetic
from megatron_qwen3.validate_fp8 import width_faults

LONG_SEQUENCE = 16384  # context parallelism is tried from here on
_PLAIN = "alltoall", False  # the exchange of tokens that layers of either kind can do


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


def exchanges(question: Question, job: Job) -> list[Job]:
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


def is_plain(job: Job) -> bool:
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
