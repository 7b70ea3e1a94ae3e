"""The settings that train a plan, as a TOML file to put after a stage's:

    write(plan, question, "plan.toml")
    python -m megatron_qwen3.train STAGE.toml plan.toml

A comment names the packages that they need.
"""

from pathlib import Path
from typing import Any

from megatron_qwen3.parallel.layout import even_stages
from megatron_qwen3.planner.question import Question
from megatron_qwen3.planner.search import LayoutPlan
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.toml import emit


def values(plan: LayoutPlan, question: Question) -> dict[str, dict[str, Any]]:
    """The settings by table."""
    job, layout = plan.job, plan.job.layout
    precision = "bf16" if job.fp8.is_on else job.precision
    is_even = layout.stage_layers == even_stages(job.model.num_layers, len(layout.stage_layers))
    parallel: dict[str, Any] = {
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "virtual_pipeline": layout.virtual,
        "pipeline_layers": [] if is_even else list(layout.stage_layers),
        "expert": layout.expert,
        "expert_tensor": layout.expert_tensor,
        "context": layout.context,
        "recompute": plan.recompute,
        "overlap": job.overlap_data,
    }
    model = {"preset": question.model.preset} if question.model.preset else _model(question)
    of_kind: dict[str, dict[str, Any]] = {}
    if job.fp8.is_on:
        of_kind["fp8"] = {"recipe": job.fp8.recipe}
    if (job.dispatcher, job.overlap_exchange) != ("alltoall", False):
        model |= {"kind": "te"}
        parallel |= {"dispatch": job.dispatcher}
        of_kind["overlap"] = {"experts": job.overlap_exchange}
    return {
        "model": model,
        **of_kind,
        "parallel": parallel,
        "data": {"sequence_length": job.sequence_length},
        "train": {
            "global_batch": question.global_batch,
            "micro_batch": job.micro_batch,
            "precision": precision,
        },
        "log": {"peak_tflops": question.cluster.peak_flops(precision) / 1e12},
    }


def text(plan: LayoutPlan, question: Question) -> str:
    """The file's text."""
    memory, step, cluster = plan.memory, plan.step, question.cluster
    rate = f"{step.tokens_per_second_per_gpu:,.0f} tokens/s and {step.tflops_per_gpu:.0f} TFLOP/s"
    lines = [
        f"# {plan.job.model.name} on {question.gpus} {cluster.name}: mq3 plan.",
        f"# Expected: {step.seconds:.3g} s per step, {rate} per GPU;",
        f"# {memory.total / 1e9:.1f} of {cluster.memory_gb:g} GB on pipeline rank "
        f"{memory.pipeline_rank}, which needs most.",
    ]
    if plan.needs:
        lines.append(f"# To be installed for it: {', '.join(plan.needs)}.")
    for table, rows in values(plan, question).items():
        lines += ["", f"[{table}]", *(f"{name} = {emit(value)}" for name, value in rows.items())]
    return "\n".join(lines) + "\n"


def write(plan: LayoutPlan, question: Question, path: str | Path) -> None:
    """Write the file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, [text(plan, question).encode()])


def _model(question: Question) -> dict[str, Any]:
    return {name: value for name, value in vars(question.model).items() if name != "preset"}
