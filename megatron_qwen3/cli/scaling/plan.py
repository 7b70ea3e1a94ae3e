"""scaling_study.py plan: which layout trains a model fastest on a cluster, and what it takes.

Searches tensor, pipeline, virtual, context, expert and expert-tensor parallelism, micro-batch,
recomputation, how tokens reach their experts, and precision. Prints the best layouts, where memory
and time of the chosen one go, and writes the settings that train it. Times are those of tuned
kernels, as published runs have them; `validate` says how well they are met.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_qwen3 import config as settings
from megatron_qwen3 import tables
from megatron_qwen3.config import ConfigError, ModelConfig
from megatron_qwen3.planner import calibration, hardware, overlay, search
from megatron_qwen3.planner.job import RECOMPUTED, Job
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.planner.search import Plan, Question
from megatron_qwen3.presets import PRESETS
from megatron_qwen3.shown import plain

_EXAMPLES = """examples:
  python tools/scaling_study.py plan --model 235b-a22b --gpu h100 --gpus 256
  python tools/scaling_study.py plan --model 8b --gpu b200 --gpus 64 --precision auto --tokens 5e12
  python tools/scaling_study.py plan --model 30b-a3b --gpu my_cluster.toml --gpus 128 --seq 32768
  python tools/scaling_study.py plan --model 14b --gpu h100 --gpus 32 --tp 4 --pp 1 --json
"""
_BATCH_TOKENS = 2**23  # of one step, where --global-batch does not say otherwise
_PINS = {
    "tp": "tensor",
    "pp": "pipeline",
    "vpp": "virtual",
    "cp": "context",
    "ep": "expert",
    "etp": "expert_tensor",
    "micro-batch": "micro_batch",
}
_DAY_SECONDS = 86_400


def add_parser(commands: Any) -> None:
    """Add the command to the sub-parsers `commands`."""
    parser = commands.add_parser(
        "plan",
        help="the best layouts of a model on a cluster",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    known = ", ".join(hardware.names())
    parser.add_argument("--model", required=True, help="size (8b, 235b-a22b) or a TOML file")
    parser.add_argument("--gpu", required=True, help=f"{known}, or a TOML file of a cluster")
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--seq", type=int, default=4096, help="tokens of a sequence (4096)")
    parser.add_argument("--global-batch", type=int, help="sequences of a step (8.4M tokens)")
    precisions = ("bf16", "fp8", "mxfp8", "nvfp4", "auto")
    parser.add_argument("--precision", choices=precisions, default="bf16")
    parser.add_argument("--tokens", type=float, default=1e12, help="token budget (1e12)")
    parser.add_argument(
        "--balanced", action="store_true", help="even load of the experts, as benchmarks force it"
    )
    parser.add_argument(
        "--today", action="store_true", help="tokens by NCCL: no DeepEP, no overlap.experts"
    )
    for name, setting in _PINS.items():
        parser.add_argument(f"--{name}", type=int, help=f"pin {setting.replace('_', ' ')}")
    parser.add_argument("--recompute", choices=RECOMPUTED, help="pin recomputation")
    parser.add_argument("--top", type=int, default=10, help="layouts that are shown (10)")
    parser.add_argument("--choose", type=int, help="layout to write; the best that --today has")
    parser.add_argument("--out", type=Path, default=Path("plan.toml"), help="settings (plan.toml)")
    parser.add_argument("--plot", type=picture, help="picture; default: beside --out, as .png")
    parser.add_argument("--json", action="store_true", help="print JSON; writes no picture")
    parser.set_defaults(run=run)


def picture(name: str) -> Path:
    """Where to draw, as an option says it."""
    if not name.endswith((".png", ".svg", ".pdf")):
        raise argparse.ArgumentTypeError(f"{name} ends in none of .png, .svg, .pdf")
    return Path(name)


def run(given: argparse.Namespace) -> int:
    """Search, print and write; the exit status."""
    question = question_of(given)
    plans = search.search(question, calibration.load(), max(given.top, 1))
    if not plans:
        raise ConfigError(why_none(question))
    chosen = _chosen(plans, given.choose)
    overlay.write(plans[chosen], question, given.out)
    if given.json:
        print(json.dumps(as_dict(question, plans, chosen, given), indent=1))
        return 0
    console = tables.console()
    console.print(_table(question, plans, chosen, given.tokens))
    for table in _breakdown(question, plans[chosen]):
        console.print(table)
    from megatron_qwen3.pages.plan_pictures import draw  # matplotlib loads slowly

    plot = given.plot or given.out.with_suffix(".png")
    draw(question, plans, plot)
    console.print(plain(f"wrote {given.out} (layout {chosen + 1}) and {plot}"), highlight=False)
    return 0


def usual_batch(sequence_length: int, gpus: int) -> int:
    """Of about _BATCH_TOKENS; sequences per GPU are a power of two, which micro-batches divide."""
    per_gpu = _BATCH_TOKENS / sequence_length / gpus
    return gpus << max(0, round(math.log2(per_gpu)))


def question_of(given: argparse.Namespace) -> Question:
    """The question that the command line asks; ConfigError names what is wrong."""
    cluster, model = hardware.load(given.gpu), model_of(given.model)
    for name in ("gpus", "seq", "global-batch", "tokens", *_PINS):
        value = getattr(given, name.replace("-", "_"))
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name} {value:g} must be above 0")
    batch = given.global_batch or usual_batch(given.seq, given.gpus)
    fixed = {
        setting: getattr(given, name.replace("-", "_"))
        for name, setting in (_PINS | {"recompute": "recompute"}).items()
        if getattr(given, name.replace("-", "_")) is not None
    }
    return Question(
        model=model,
        cluster=cluster,
        gpus=given.gpus,
        sequence_length=given.seq,
        global_batch=batch,
        precisions=_precisions(given.precision, cluster),
        dispatchers=("alltoall",) if given.today else ("alltoall", "deepep"),
        balanced=given.balanced,
        fixed=tuple(fixed.items()),
    )


def _name(question: Question) -> str:
    return question.model.preset or "the model"


def model_of(name: str) -> ModelConfig:
    """A preset by its name or size, or the model of a TOML file."""
    if name.endswith(".toml"):
        return settings.load([name], any_length=True).model
    preset = name.lower() if name.lower() in PRESETS else f"qwen3-{name.lower()}"
    if preset not in PRESETS:
        sizes = ", ".join(preset.removeprefix("qwen3-") for preset in PRESETS)
        raise ConfigError(f"--model {name} is neither a size ({sizes}) nor a TOML file")
    return settings.load([], [f"model.preset={preset}", "train.steps=1"]).model


def _precisions(asked: str, cluster: hardware.Cluster) -> tuple[str, ...]:
    if asked == "auto":
        best = "mxfp8" if cluster.supports("mxfp8") else "fp8"
        return ("bf16", best) if cluster.supports(best) else ("bf16",)
    if not cluster.supports(asked):
        valid = [p for p in ("bf16", "fp8", "mxfp8", "nvfp4") if cluster.supports(p)]
        raise ConfigError(f"--precision {asked}: {cluster.name} has {', '.join(valid)}")
    return (asked,)


def why_none(question: Question) -> str:
    """Why no layout is possible, and the nearest that is."""
    smallest = search.least_memory(question)
    where = f"{_name(question)} on {question.gpus} {question.cluster.name}"
    if smallest is None:
        return f"no layout of {where} divides as asked: {_undivided(question)}"
    job, recompute = smallest
    need, have = Memory.of(job).total / 1e9, search.usable_bytes(question.cluster) / 1e9
    leanest = f"({describe(job)}, recompute {recompute})"
    text = (
        f"{where} does not fit: even the leanest layout {leanest} needs {need:.1f} GB, and of the "
        f"{question.cluster.memory_gb:g} GB per GPU {have:.1f} can be used"
    )
    return f"{text}; {_nearest_gpus(question)}"


def _nearest_gpus(question: Question) -> str:
    """The next doubling of GPUs at which a layout fits."""
    found = search.fewest_gpus(question)
    if found:
        return f"the fewest that fit, doubling: {found[0]} GPUs ({describe(found[1])})"
    return "shorter sequences, a smaller model, or unpinned sizes may"


def _undivided(question: Question) -> str:
    """Which pin stands in the way, and what it could be."""
    for name, value in question.fixed:
        rest = tuple(item for item in question.fixed if item[0] != name)
        free = replace(question, fixed=rest)
        sizes = (_size(job, name) for job in search.candidates(free))
        found = {size for size in sizes if size is not None}
        if found and isinstance(value, int):
            wanted = value
            near = sorted(found, key=lambda size: abs(size - wanted))[:3]
            valid = ", ".join(map(str, sorted(near)))
            return f"{name} = {value} does not; with the rest as asked, valid near it: {valid}"
    unit = question.gpus
    near_batch = max(1, round(question.global_batch / unit)) * unit
    return (
        f"the global batch of {question.global_batch} sequences cannot be shared by "
        f"{question.gpus} GPUs in any layout; near it: {near_batch}"
    )


def _size(job: Job, name: str) -> int | None:
    if name == "micro_batch":
        return job.micro_batch
    size: int | None = getattr(job.layout, name, None)
    return size


def describe(job: Job) -> str:
    """tp2 pp8 ep8 mb1"""
    sizes = job.sizes
    parts = [f"{name}{size}" for name, size in sizes.items() if size > 1 or name in ("tp", "pp")]
    return " ".join([*parts, f"mb{job.micro_batch}"])


def _chosen(plans: list[Plan], asked: int | None) -> int:
    if asked is None:
        return next((i for i, plan in enumerate(plans) if plan.is_plain), 0)
    if not 1 <= asked <= len(plans):
        raise ConfigError(f"--choose {asked}: there are layouts 1 to {len(plans)}")
    return asked - 1


def mfu(question: Question, plan: Plan) -> float:
    """Share of the dense peak of the plan's precision."""
    return plan.step.tflops_per_gpu * 1e12 / question.cluster.peak_flops(plan.job.precision)


def days(question: Question, plan: Plan, tokens: float) -> float:
    """Days that a budget of tokens takes."""
    rate = plan.step.tokens_per_second_per_gpu * question.gpus
    return tokens / rate / _DAY_SECONDS


def as_dict(
    question: Question, plans: list[Plan], chosen: int, given: argparse.Namespace
) -> dict[str, Any]:
    """Everything, for programs; seconds, bytes, tokens."""
    return {
        "model": _name(question),
        "gpu": question.cluster.name,
        "gpus": question.gpus,
        "sequence_length": question.sequence_length,
        "global_batch": question.global_batch,
        "tokens": given.tokens,
        "memory_bytes_per_gpu": question.cluster.memory_bytes,
        "plans": [_plan_dict(question, plan, given.tokens) for plan in plans],
        "chosen": chosen,
        "overlay": str(given.out),
    }


def _plan_dict(question: Question, plan: Plan, tokens: float) -> dict[str, Any]:
    job, duration = plan.job, days(question, plan, tokens)
    return {
        "layout": job.layout.counts() | {"stage_layers": list(job.layout.stage_layers)},
        "micro_batch": job.micro_batch,
        "recompute": plan.recompute,
        "precision": job.precision,
        "dispatcher": job.dispatcher if job.model.num_experts else None,
        "overlap_exchange": job.overlap_exchange,
        "needs": plan.needs,
        "memory_bytes": plan.memory.parts() | {"total": plan.memory.total},
        "pipeline_rank": plan.memory.pipeline_rank,
        "step_seconds": plan.step.seconds,
        "step_parts_seconds": plan.step.parts,
        "hidden_seconds": plan.step.hidden,
        "tokens_per_second_per_gpu": plan.step.tokens_per_second_per_gpu,
        "tflops_per_gpu": plan.step.tflops_per_gpu,
        "peak_tflops": question.cluster.peak_flops(job.precision) / 1e12,
        "mfu": mfu(question, plan),
        "days": duration,
        "gpu_hours": 24 * duration * question.gpus,
    }


def _table(question: Question, plans: list[Plan], chosen: int, tokens: float) -> Table:
    cluster = question.cluster
    title = (
        f"{_name(question)} on {question.gpus} {cluster.name} ({cluster.memory_gb:g} GB), "
        f"{question.global_batch:,} sequences of {question.sequence_length:,} per step"
    )
    words = ("layout", "recompute", "precision", "needs")
    numbers = ["GB", "s/step", "tok/s/GPU", "TFLOP/s", "MFU", "days", "GPU hours"]
    lines = [["", *words[:3], *numbers, "needs"]]
    for i, plan in enumerate(plans):
        duration = days(question, plan, tokens)
        lines.append(
            [
                f"{'▸' if i == chosen else ''}{i + 1}",
                describe(plan.job),
                plan.recompute,
                plan.job.precision,
                f"{plan.memory.total / 1e9:.1f}",
                f"{plan.step.seconds:.2f}",
                f"{plan.step.tokens_per_second_per_gpu:,.0f}",
                f"{plan.step.tflops_per_gpu:.0f}",
                f"{100 * mfu(question, plan):.1f}%",
                f"{duration:,.1f}",
                f"{24 * duration * question.gpus:,.0f}",
                ", ".join(plan.needs),
            ]
        )
    table = tables.table(lines, title, words)
    table.rows[chosen].style = "bold"
    table.caption = (
        f"days and GPU hours for {tokens:.3g} tokens; MFU against the dense peak of the precision; "
        "needs: to be installed beside torch and megatron-core"
    )
    return table


def _breakdown(question: Question, plan: Plan) -> list[Table]:
    """Where memory and time of one plan go."""
    memory = _shares(
        f"memory of pipeline rank {plan.memory.pipeline_rank}, GB",
        {name: size / 1e9 for name, size in plan.memory.parts().items()},
        question.cluster.memory_gb,
    )
    step = _shares("one step, s", plan.step.parts, plan.step.seconds)
    hidden = {name: seconds for name, seconds in plan.step.hidden.items() if seconds > 0.0005}
    found = [memory, step]
    if hidden:
        found.append(_shares("beside it, hidden, s", hidden, plan.step.seconds))
    return found


def _shares(title: str, parts: dict[str, float], whole: float) -> Table:
    lines = [["part", "size", "share"]]
    for name, size in parts.items():
        if size >= 5e-4 * whole:
            bar = "█" * round(40 * size / whole)
            lines.append([name, f"{size:.3g}", f"{bar} {100 * size / whole:.0f}%"])
    table = tables.table(lines, title, words=("part", "share"))
    for column, width in zip(table.columns, (24, 9, 44), strict=True):
        column.width = width  # tables below each other have their bars below each other
    return table
