"""Estimates a layout's memory and time quickly, to choose which are worth computing exactly."""

from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.planner import activations, low_precision
from megatron_qwen3.planner.hardware import Cluster
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.layer_time import Constants, LayerTimer
from megatron_qwen3.planner.step import local_parameters


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
