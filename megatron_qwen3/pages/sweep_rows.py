"""Formats a scaling study as tables for a terminal and a page, and as JSON."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from megatron_qwen3.studies.efficiency import Curve
from megatron_qwen3.tables import table
from megatron_qwen3.training.console import count

Rows = list[list[str]]


def terminal(curves: Sequence[Curve]) -> Iterator[Table]:
    """One table of points, one of laws."""
    for title, rows in (("Measured points", point_rows(curves)), ("Laws", law_rows(curves))):
        yield table(rows, title, words=rows[0][:2])


def point_rows(curves: Sequence[Curve]) -> Rows:
    """One row per point; columns that no point has numbers for are left out."""
    header = ["curve", "scaling", "GPUs", "sequences", "step", "quartiles", "tok/s", "efficiency"]
    rows = [[*header, "predicted step", "error", "per M tokens"]]
    for curve in curves:
        for row in curve.rows:
            predicted = row.predicted_seconds
            rows.append(
                [
                    curve.name,
                    curve.scaling,
                    str(row.case.gpus),
                    str(row.case.point.config.train.global_batch),
                    seconds(row.step_seconds),
                    f"{seconds(row.low)} – {seconds(row.high)}",
                    count(row.tokens_per_second),
                    f"{100 * row.efficiency:.0f} %",
                    "" if predicted is None else seconds(predicted),
                    ""
                    if predicted is None
                    else f"{100 * (predicted / row.step_seconds - 1):+.0f} %",
                    f"{row.cost_per_million_tokens:.3g}" if row.cost_per_million_tokens else "",
                ]
            )
    known = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return [[row[i] for i in known] for row in rows]


def law_rows(curves: Sequence[Curve]) -> Rows:
    """One row per curve."""
    rows = [["curve", "scaling", "σ", "κ", "most GPUs", "largest predicted from the others"]]
    for curve in curves:
        cells = ["", "", ""]
        if curve.law:
            most = curve.law.most_gpus
            cells = [f"{curve.law.sigma:.3g}", f"{curve.law.kappa:.3g}"]
            cells.append(f"{most:.0f}" if math.isfinite(most) else "–")
        error = curve.held_out_error
        rows.append(
            [curve.name, curve.scaling, *cells, "" if error is None else f"{100 * error:+.0f} %"]
        )
    return rows


def machine_lines(machine: dict[str, Any], curves: Sequence[Curve]) -> list[str]:
    """Lines on the machine of the points, and on its limits."""
    if not machine:
        return []
    largest = max(row.case.gpus for curve in curves for row in curve.rows)
    lines = [
        f"{machine['cores']} cores of {machine['processor']}, {machine['system']}; "
        f"load average {machine['load']:.1f} before the first point."
    ]
    if largest > machine["cores"]:
        lines.append(
            f"Up to {largest} ranks shared {machine['cores']} cores: beyond {machine['cores']} "
            "ranks the curves show cores being shared, not the cost of communication."
        )
    return lines


def as_dict(
    curves: Sequence[Curve], left_out: Sequence[str], machine: dict[str, Any]
) -> dict[str, Any]:
    """All numbers for programs."""
    return {
        "machine": machine,
        "left_out": list(left_out),
        "curves": [
            {
                "scaling": curve.scaling,
                "model": curve.model,
                "layout": curve.layout,
                "law": curve.law and dataclasses.asdict(curve.law),
                "held_out_error": curve.held_out_error,
                "rows": [
                    {
                        "name": row.case.point.name,
                        "gpus": row.case.gpus,
                        "global_batch": row.case.point.config.train.global_batch,
                        **{
                            field.name: getattr(row, field.name)
                            for field in dataclasses.fields(row)
                            if field.name != "case"
                        },
                    }
                    for row in curve.rows
                ],
            }
            for curve in curves
        ],
    }


def seconds(value: float) -> str:
    """`12.3 ms`, `1.23 s`."""
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"
