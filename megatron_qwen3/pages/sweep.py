"""Writes the page about a scaling study: its pictures, and the places of these and the tables."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from megatron_qwen3.pages import page, pictures, sweep_rows
from megatron_qwen3.pages.pictures import FAINT, HUES, MUTED, Picture, count_tick, plain_tick
from megatron_qwen3.studies.efficiency import Curve


def write(
    curves: Sequence[Curve], left_out: Sequence[str], machine: dict[str, Any], out: Path
) -> None:
    """Write the page to `out` and its pictures to the folder of the same name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with pictures.style():
        drawn = list(_pictures(curves))
    body = [_key_numbers(curves), page.FIGURES]
    body.append(page.table("Measured points", sweep_rows.point_rows(curves)))
    body.append(page.table("Laws", sweep_rows.law_rows(curves)))
    for title, lines in (
        ("Measured on", sweep_rows.machine_lines(machine, curves)),
        ("Left out", left_out),
    ):
        if lines:
            body.append(page.text(title, lines))
    models = ", ".join(dict.fromkeys(curve.model for curve in curves))
    page.write(out, "Scaling study", models, body, drawn)


def _key_numbers(curves: Sequence[Curve]) -> Markup:
    rows = [row for curve in curves for row in curve.rows]
    largest = max(row.case.gpus for row in rows)
    tiles = [(str(len({row.case.point.name for row in rows})), "runs")]
    for scaling in ("weak", "strong"):
        ends = [c.rows[-1] for c in curves if c.scaling == scaling and len(c.rows) > 1]
        if at_largest := [row.efficiency for row in ends if row.case.gpus == largest]:
            best = f"{100 * max(at_largest):.0f} %"
            tiles.append((best, f"best {scaling} scaling efficiency on {largest} GPUs"))
    costs = [row.cost_per_million_tokens for row in rows if row.cost_per_million_tokens]
    if costs:
        tiles.append((f"{min(costs):.3g}", "lowest cost of a million tokens"))
    return page.numbers(tiles)


def _pictures(curves: Sequence[Curve]) -> Iterator[Picture]:
    for scaling, constant in (("weak", "work per GPU"), ("strong", "all work together")):
        of_kind = [curve for curve in curves if curve.scaling == scaling]
        if of_kind:
            title = f"{scaling.capitalize()} scaling"
            yield _efficiency(
                of_kind,
                scaling,
                title,
                f"{constant} is constant; bars are quartiles, lines the law",
            )
            yield _throughput(of_kind, scaling, title)
    if any(row.predicted_seconds for curve in curves for row in curve.rows):
        yield _predicted(curves)
    if any(row.cost_per_million_tokens for curve in curves for row in curve.rows):
        yield _cost(curves)


def _efficiency(curves: Sequence[Curve], scaling: str, title: str, caption: str) -> Picture:
    axes = pictures.axes("GPUs", "efficiency, %")
    axes.axhline(100, color=FAINT, linewidth=1.2)
    for curve, colour in zip(curves, _colours(curves), strict=True):
        gpus = [row.case.gpus for row in curve.rows]
        middle = 100 * np.array([row.efficiency for row in curve.rows])
        seconds = np.array([[row.low, row.step_seconds, row.high] for row in curve.rows]).T
        fast, slow = seconds[1] / seconds[0], seconds[1] / seconds[2]  # quartiles of the steps
        error = [middle * (1 - slow), middle * (fast - 1)]
        style = {"color": colour, "markersize": 4, "elinewidth": 0.8, "label": curve.name}
        axes.errorbar(gpus, middle, yerr=error, fmt="o", **style)
        if curve.law:
            x = np.geomspace(gpus[0], gpus[-1], 60)
            y = [100 * curve.law.tokens_per_second(n) / n * gpus[0] / curve.law.one for n in x]
            axes.plot(x, y, color=colour, linewidth=1.1)
    axes.set_ylim(bottom=0)
    _count_axis(axes, curves)
    axes.legend(frameon=False, fontsize=7.5)
    return pictures.finish(axes, f"{scaling}_efficiency", title, caption, is_wide=False)


def _throughput(curves: Sequence[Curve], scaling: str, title: str) -> Picture:
    axes = pictures.axes("GPUs", "tokens per second")
    for curve, colour in zip(curves, _colours(curves), strict=True):
        gpus = np.array([row.case.gpus for row in curve.rows])
        rates = [row.tokens_per_second for row in curve.rows]
        axes.plot(gpus, rates, "o-", color=colour, markersize=4, linewidth=1.1, label=curve.name)
        axes.plot(gpus, rates[0] * gpus / gpus[0], color=colour, linewidth=0.7, linestyle=":")
    pictures.make_logarithmic(axes, "y", count_tick)
    _count_axis(axes, curves)
    axes.legend(frameon=False, fontsize=7.5)
    name, caption = f"{scaling}_throughput", "dotted: as many times as fast as there are GPUs"
    return pictures.finish(axes, name, f"{title}: throughput", caption, is_wide=False)


def _predicted(curves: Sequence[Curve]) -> Picture:
    axes = pictures.axes("measured, seconds per step", "predicted")
    rows = [row for curve in curves for row in curve.rows if row.predicted_seconds]
    ends = [
        min(row.step_seconds for row in rows) / 1.2,
        max(row.step_seconds for row in rows) * 1.2,
    ]
    axes.plot(ends, ends, color=FAINT)
    for curve, colour in zip(curves, _colours(curves), strict=True):
        x = [row.step_seconds for row in curve.rows]
        y = [row.predicted_seconds for row in curve.rows]
        axes.plot(x, y, "o", color=colour, markersize=4, label=f"{curve.name}, {curve.scaling}")
    pictures.make_logarithmic(axes, "x", plain_tick)
    pictures.make_logarithmic(axes, "y", plain_tick)
    axes.legend(frameon=False, fontsize=7.5)
    title, caption = "Predicted against measured", "by the planner, before the run"
    return pictures.finish(axes, "predicted", title, caption, is_wide=False)


def _cost(curves: Sequence[Curve]) -> Picture:
    axes = pictures.axes("GPUs", "cost of a million tokens")
    for curve, colour in zip(curves, _colours(curves), strict=True):
        gpus = [row.case.gpus for row in curve.rows]
        costs = [row.cost_per_million_tokens for row in curve.rows]
        label = f"{curve.name}, {curve.scaling}"
        axes.plot(gpus, costs, "o-", color=colour, markersize=4, linewidth=1.1, label=label)
    axes.set_ylim(bottom=0)
    _count_axis(axes, curves)
    axes.legend(frameon=False, fontsize=7.5)
    return pictures.finish(axes, "cost", "Cost per token", "", is_wide=False)


def _count_axis(axes: Axes, curves: Sequence[Curve]) -> None:
    """GPU counts on a logarithmic axis, labelled where there are points."""
    counts = sorted({row.case.gpus for curve in curves for row in curve.rows})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(counts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    axes.tick_params(axis="x", color=MUTED)


def _colours(curves: Sequence[Curve]) -> list[str]:
    return [HUES[i % len(HUES)] for i in range(len(curves))]
