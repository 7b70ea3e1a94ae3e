"""scaling_study.py validate: the planner against published training runs.

Takes a CSV with a line per run: model, gpu, n_gpus, precision, gbs, mbs, seq_len, tp, pp, vpp, cp,
ep, etp, step_time_s and, where known, fp8_recipe, fsdp, recompute, dispatcher, comm_overlap,
cuda_graph, routing, layers_override, peak_mem_gb, release, source_repo, notes; or one with
Megatron-LM's arguments and its recorded memory peaks (mem_max_allocated_gb). Prints the error of
every line, medians and 90th percentiles of groups, and draws predicted over published.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from megatron_qwen3 import tables
from megatron_qwen3.cli.scaling.plan import picture
from megatron_qwen3.planner import accuracy, calibration, published, published_memory
from megatron_qwen3.planner.accuracy import ComparedRun, Errors
from megatron_qwen3.shown import as_json, plain

_EXAMPLES = """examples:
  mq3 study validate examples/planner/published_perf.csv
  mq3 study validate examples/planner/published_memory.csv --quiet
  mq3 study validate examples/planner/published_perf.csv --json > errors.json
"""
_WORDS = ("row", "model", "GPU", "precision", "layout")


def add_parser(commands: Any) -> None:
    """Add the command to the sub-parsers `commands`."""
    parser = commands.add_parser(
        "validate",
        help="predictions against published runs",
        description=__doc__,
        epilog=_EXAMPLES,
    )
    parser.add_argument("csv", type=Path, metavar="CSV")
    parser.add_argument("--plot", type=picture, default="validate.png", help="(validate.png)")
    parser.add_argument("--quiet", action="store_true", help="groups only, not every line")
    parser.add_argument("--json", action="store_true", help="print JSON; draws no picture")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Print and draw; the exit status."""
    if published_memory.is_one(given.csv):
        runs = published_memory.read(given.csv)
    else:
        runs = published.read(given.csv)
    compared = sorted(accuracy.compare(runs, calibration.load()), key=accuracy.sort_key)
    if given.json:
        print(as_json(as_dict(compared)))
        return 0
    console = tables.console()
    if not given.quiet:
        console.print(_rows(compared))
    for title, of_memory in (("step time", False), ("memory peak", True)):
        found = accuracy.groups(compared, of_memory)
        if found:
            print_groups(f"{title}: absolute error", found)
    for line in _left_out(compared):
        console.print(plain(line))
    from megatron_qwen3.pages.validate_pictures import draw  # matplotlib loads slowly

    draw(compared, given.plot)
    console.print(plain(f"wrote {given.plot}"))
    return 0


def as_dict(compared: Sequence[ComparedRun]) -> dict[str, Any]:
    """Rows and groups, for programs."""
    return {
        "rows": [_row_dict(one) for one in compared],
        "groups": groups_dict(accuracy.groups(compared)),
        "memory_groups": groups_dict(accuracy.groups(compared, of_memory=True)),
    }


def groups_dict(found: dict[str, Errors]) -> dict[str, dict[str, float]]:
    """Errors of each group, for programs."""
    return {
        name: {
            "count": errors.count,
            "median_abs_error": errors.median,
            "p90_abs_error": errors.p90,
        }
        for name, errors in found.items()
    }


def _row_dict(one: ComparedRun) -> dict[str, Any]:
    run = one.run
    row: dict[str, Any] = {
        "row_id": run.row_id,
        "model": run.model,
        "gpu": run.gpu,
        "precision": run.precision,
        "tuned": run.is_tuned,
        "published_step_time_s": run.seconds,
    }
    if run.job is None:
        return row | {"reason": run.reason}
    row |= {"predicted_step_time_s": one.step_seconds, "error": one.error}
    if run.peak_bytes:
        row["published_peak_bytes"] = run.peak_bytes
        row |= {"predicted_peak_bytes": one.peak_bytes, "memory_error": one.memory_error}
    return row


def _rows(compared: Sequence[ComparedRun]) -> Table:
    """A line per run; columns that no run has anything for are left out."""
    cells = [_cells(one) for one in compared if one.run.job is not None]
    known = [name for name in cells[0] if any(row[name] for row in cells)] if cells else []
    return tables.table([known, *([row[name] for name in known] for row in cells)], words=_WORDS)


def _cells(one: ComparedRun) -> dict[str, str]:
    run, has_time = one.run, one.error is not None
    return {
        "row": run.row_id,
        "model": run.model,
        "GPU": run.gpu,
        "precision": run.precision,
        "layout": _layout(one),
        "published s": _number(run.seconds if has_time else None),
        "predicted s": _number(one.step_seconds),
        "error": _percent(one.error),
        "published GB": _number(run.peak_bytes and run.peak_bytes / 1e9),
        "predicted GB": _number(one.peak_bytes and one.peak_bytes / 1e9),
        "memory error": _percent(one.memory_error),
    }


def _layout(one: ComparedRun) -> str:
    assert one.run.job
    layout = one.run.job.layout
    sizes = {"tp": layout.tensor, "pp": layout.pipeline, "cp": layout.context, "ep": layout.expert}
    parts = [f"{name}{size}" for name, size in sizes.items() if size > 1]
    return " ".join([f"{layout.world_size}:", *parts])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}%"


def print_groups(title: str, found: dict[str, Errors]) -> None:
    """Medians and 90th percentiles of each group."""
    tables.console().print(_groups(title, found))


def _groups(title: str, found: dict[str, Errors]) -> Table:
    lines = [["group", "runs", "median", "90th percentile"]]
    for name, errors in sorted(found.items(), key=lambda item: _group_order(item[0])):
        median, p90 = f"{100 * errors.median:.1f}%", f"{100 * errors.p90:.1f}%"
        lines.append([name, f"{errors.count:d}", median, p90])
    return tables.table(lines, title)


def _group_order(name: str) -> tuple[int, str]:
    kinds = ("all", "tuned", "Qwen3", "GPU", "precision", "model")
    return next(i for i, kind in enumerate(kinds) if name.startswith(kind)), name


def _left_out(compared: Sequence[ComparedRun]) -> list[str]:
    rows: dict[str, list[str]] = {}
    for one in compared:
        if one.run.job is None:
            rows.setdefault(one.run.reason, []).append(one.run.row_id)
    lines = [f"left out: {sum(map(len, rows.values()))} of {len(compared)} runs"]
    lines += [f"  {len(ids):3d}  {reason} (rows {', '.join(ids)})" for reason, ids in rows.items()]
    return lines
