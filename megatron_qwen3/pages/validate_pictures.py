"""Draws a validation: predicted over published, and the spread of the errors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from megatron_qwen3.pages import pictures
from megatron_qwen3.planner.accuracy import ComparedRun

_FEWEST = 5  # points that make a picture of their own
_WITHIN = 0.2  # the band around equality


def draw(compared: Sequence[ComparedRun], path: Path) -> None:
    """Write the picture; its suffix chooses the format."""
    seconds = [
        (one, one.run.seconds, one.step_seconds) for one in compared if one.error is not None
    ]
    peaks = [
        (one, _gb(one.run.peak_bytes), _gb(one.peak_bytes))
        for one in compared
        if one.memory_error is not None
    ]
    both = ((seconds, "seconds per step"), (peaks, "GB peak"))
    panels = [panel for panel in both if len(panel[0]) >= _FEWEST] or [max(both, key=_count)]
    with pictures.style():
        figure = Figure(figsize=(5.4 * max(len(panels), 1), 5), layout="constrained")
        for i, (points, unit) in enumerate(panels):
            _scatter(figure.add_subplot(1, len(panels), i + 1), points, unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures.save(figure, path)


def _count(panel: tuple[list[Any], str]) -> int:
    return len(panel[0])


def _gb(size: float | None) -> float | None:
    return None if size is None else size / 1e9


def _scatter(
    axes: Axes, points: list[tuple[ComparedRun, float | None, float | None]], unit: str
) -> None:
    families = sorted({_family(one) for one, _, _ in points})
    for family, hue in zip(families, pictures.HUES * 3, strict=False):
        mine = [(x, y) for one, x, y in points if _family(one) == family and x and y]
        xs, ys = zip(*mine, strict=True)
        axes.scatter(xs, ys, s=11, color=hue, label=family, alpha=0.8, linewidths=0)
    ends = [value for _, x, y in points for value in (x, y) if value] or [1.0]
    low, high = min(ends) / 1.2, max(ends) * 1.2
    axes.plot([low, high], [low, high], color=pictures.INK, linewidth=0.8)
    band = [[edge * (1 + side * _WITHIN) for edge in (low, high)] for side in (-1, 1)]
    axes.fill_between([low, high], *band, color=pictures.FAINT, linewidth=0, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel=f"published, {unit}", ylabel=f"predicted, {unit}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(pictures.plain_tick))
        axis.set_minor_formatter(NullFormatter())
    axes.set_title(f"band: ± {100 * _WITHIN:.0f} %", fontsize=8, color=pictures.MUTED)
    if families:
        axes.legend(frameon=False, fontsize=7)


def _family(one: ComparedRun) -> str:
    assert one.run.job
    return one.run.job.model.name.split("-")[0]
