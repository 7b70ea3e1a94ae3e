"""scaling_study.py plan: the layouts that train a model fastest on a cluster, and their costs.

Searches tensor, pipeline, virtual, context, expert and expert-tensor parallelism, micro-batch,
recomputation and precision, as torch and megatron-core train them; --hypothetical adds layouts that
need more to be installed. Prints the best layouts, and where memory and time of the chosen one go;
--out writes the settings that train it, --plot draws all. Times are those of tuned kernels, as
published runs have them; `validate` says how well they are met.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_qwen3 import tables
from megatron_qwen3.cli import grammar
from megatron_qwen3.config import ConfigError
from megatron_qwen3.planner import calibration, hardware, overlay, search
from megatron_qwen3.planner.job import RECOMPUTED
from megatron_qwen3.planner.question import PRECISIONS, Question, ask
from megatron_qwen3.planner.search import LayoutPlan
from megatron_qwen3.planner.why_none import why_none
from megatron_qwen3.shown import as_json, plain

_EXAMPLES = """examples:
  mq3 plan --model 235b-a22b --gpu h100 --gpus 256
  mq3 plan --model 8b --gpu b200 --gpus 64 --precision auto --tokens 5e12
  mq3 plan --model 30b-a3b --gpu my_cluster.toml --gpus 128 --seq 32768
  mq3 plan --model 30b-a3b --gpu h100 --gpus 64 --hypothetical
  mq3 plan --model 8b --gpu h100 --gpus 32 --out plan.toml --plot plan.png
  mq3 plan --model 14b --gpu h100 --gpus 32 --tp 4 --pp 1 --json
"""
_PINS = {
    "tp": "tensor",
    "pp": "pipeline",
    "vpp": "virtual",
    "cp": "context",
    "ep": "expert",
    "etp": "expert_tensor",
    "micro-batch": "micro_batch",
}


def add_parser(commands: Any) -> None:
    """Add the command to the sub-parsers `commands`."""
    parser = commands.add_parser(
        "plan",
        help="the best layouts of a model on a cluster",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    known = ", ".join(hardware.names())
    parser.add_argument(
        "--model", required=True, help="size (8b), TOML file, config.json, name of the hub"
    )
    parser.add_argument("--gpu", required=True, help=f"{known}, or a TOML file of a cluster")
    parser.add_argument("--gpus", type=int, required=True)
    parser.add_argument("--seq", type=int, default=4096, help="tokens of a sequence (4096)")
    parser.add_argument("--global-batch", type=int, help="sequences of a step (8.4M tokens)")
    parser.add_argument("--precision", choices=(*PRECISIONS, "auto"), default="bf16")
    parser.add_argument("--tokens", type=float, default=1e12, help="token budget (1e12)")
    parser.add_argument(
        "--force-balanced",
        action="store_true",
        help="even load of the experts, as benchmarks force it",
    )
    grammar.add_renamed(parser.add_argument, "--balanced", "--force-balanced")
    parser.add_argument(
        "--hypothetical",
        action="store_true",
        help="layouts, too, for which DeepEP or Transformer Engine is to be installed",
    )
    for name, setting in _PINS.items():
        parser.add_argument(f"--{name}", type=int, help=f"pin {setting.replace('_', ' ')}")
    parser.add_argument("--recompute", choices=RECOMPUTED, help="pin recomputation")
    parser.add_argument("--top", type=int, default=10, help="layouts that are shown (10)")
    parser.add_argument("--choose", type=int, help="layout to break down and to write (the best)")
    text = "write the settings of that layout here"
    parser.add_argument("--out", type=Path, metavar="FILE", help=text)
    parser.add_argument("--plot", type=picture, help="draw all layouts here: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def picture(name: str) -> Path:
    """The path of a picture, as an option gives it."""
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
    written = _write(question, plans, chosen, given)
    if given.json:
        print(as_json(as_dict(question, plans, chosen, given)))
        return 0
    console = tables.console()
    console.print(_table(question, plans, chosen, given.tokens))
    for table in _breakdown(question, plans[chosen]):
        console.print(table)
    console.print(plain(written), highlight=False)
    return 0


def _write(
    question: Question, plans: list[LayoutPlan], chosen: int, given: argparse.Namespace
) -> str:
    """Write the requested files; which files, or how to get them."""
    files = []
    if given.out:
        overlay.write(plans[chosen], question, given.out)
        files.append(f"{given.out} (layout {chosen + 1})")
    if given.plot:
        from megatron_qwen3.pages.plan_pictures import draw  # matplotlib loads slowly

        draw(question, plans, given.plot)
        files.append(str(given.plot))
    if files:
        return f"wrote {' and '.join(files)}"
    return "--out plan.toml writes the settings that train it; --plot plan.png draws all"


def question_of(given: argparse.Namespace) -> Question:
    """The question that the command line asks. Raises ConfigError for a wrong value."""
    for name in ("gpus", "seq", "global-batch", "tokens", *_PINS):
        value = getattr(given, name.replace("-", "_"))
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name} {value:g} must be above 0")
    pins = {
        setting: getattr(given, name.replace("-", "_"))
        for name, setting in (_PINS | {"recompute": "recompute"}).items()
    }
    return ask(
        given.model,
        given.gpu,
        given.gpus,
        sequence_length=given.seq,
        global_batch=given.global_batch,
        precision=given.precision,
        hypothetical=given.hypothetical,
        force_balanced=given.force_balanced,
        fixed={name: value for name, value in pins.items() if value is not None},
    )


def _chosen(plans: list[LayoutPlan], asked: int | None) -> int:
    if asked is None:
        return next((i for i, plan in enumerate(plans) if plan.is_plain), 0)
    if not 1 <= asked <= len(plans):
        raise ConfigError(f"--choose {asked}: there are layouts 1 to {len(plans)}")
    return asked - 1


def as_dict(
    question: Question, plans: list[LayoutPlan], chosen: int, given: argparse.Namespace
) -> dict[str, Any]:
    """Everything, for programs; seconds, bytes, tokens."""
    return {
        "model": question.name,
        "gpu": question.cluster.name,
        "gpus": question.gpus,
        "sequence_length": question.sequence_length,
        "global_batch": question.global_batch,
        "tokens": given.tokens,
        "memory_bytes_per_gpu": question.cluster.memory_bytes,
        "plans": [_plan_dict(question, plan, given.tokens) for plan in plans],
        "chosen": chosen,
        "overlay": str(given.out) if given.out else None,
    }


def _plan_dict(question: Question, plan: LayoutPlan, tokens: float) -> dict[str, Any]:
    job, duration = plan.job, plan.days(tokens)
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
        "mfu": plan.mfu(question.cluster),
        "days": duration,
        "gpu_hours": 24 * duration * question.gpus,
    }


def _table(question: Question, plans: list[LayoutPlan], chosen: int, tokens: float) -> Table:
    cluster = question.cluster
    title = (
        f"{question.name} on {question.gpus} {cluster.name} ({cluster.memory_gb:g} GB), "
        f"{question.global_batch:,} sequences of {question.sequence_length:,} per step"
    )
    words = ("layout", "recompute", "precision", "needs")
    numbers = ["GB", "s/step", "tok/s/GPU", "TFLOP/s", "MFU", "days", "GPU hours"]
    lines = [["", *words[:3], *numbers, "needs"]]
    for i, plan in enumerate(plans):
        duration = plan.days(tokens)
        lines.append(
            [
                f"{'▸' if i == chosen else ''}{i + 1}",
                plan.job.described,
                plan.recompute,
                plan.job.precision,
                f"{plan.memory.total / 1e9:.1f}",
                f"{plan.step.seconds:.2f}",
                f"{plan.step.tokens_per_second_per_gpu:,.0f}",
                f"{plan.step.tflops_per_gpu:.0f}",
                f"{100 * plan.mfu(question.cluster):.1f}%",
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


def _breakdown(question: Question, plan: LayoutPlan) -> list[Table]:
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
