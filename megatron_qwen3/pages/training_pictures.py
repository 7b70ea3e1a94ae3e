"""Draws the pictures of a training report with matplotlib.

`draw_all(runs)` gives one `Picture` per question that a person asks of a training: the stages stand
one after another over the tokens trained on.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from megatron_qwen3.pages import pictures
from megatron_qwen3.pages.pictures import (
    FAINT,
    HUES,
    INK,
    MUTED,
    Picture,
    count_tick,
    finish,
    plain_tick,
    rate_tick,
    spread,
    style,
)
from megatron_qwen3.pages.settings_said import said
from megatron_qwen3.training.history import RunHistory
from megatron_qwen3.training.metrics_file import ALL_SOURCES

_MOST_POINTS = 3000  # of one curve; a picture shows no more
_LETTER_POINTS = 5.0  # roughly
# Of modes whose losses are none of given texts, and the units of such losses.
_LOSSES = {"reward": "bradley_terry", "rl": "policy", "distill": "divergence"}
_UNITS = {"bradley_terry": "nats per pair", "policy": "loss of the policy"}


def draw_all(runs: Sequence[RunHistory]) -> list[Picture]:
    """Every picture that the runs have numbers for."""
    with style():
        return list(_pictures(runs))


def _pictures(runs: Sequence[RunHistory]) -> Iterator[Picture]:
    bold, losses = "every step faint, the mean around it bold", [_loss_of(run) for run in runs]
    if differ := len(set(losses)) > 1:
        bold += "; stages train different losses: "
        bold += ", ".join(f"{number} {loss}" for number, loss in enumerate(losses, 1))
    unit = "loss of the stage" if differ else _UNITS.get(losses[0], "nats per token")
    yield _curve(runs, "loss", "loss", "Training loss", bold, unit, is_wide=True)
    yield from _held_out(runs, "loss", "Held-out loss", "nats per token")
    yield from _held_out(runs, "bits_per_byte", "Held-out bits per byte", "bits per byte")
    yield from _held_out(runs, "accuracy", "Held-out pairs", "share ranked as given")
    clip = "before clipping"
    yield _curve(runs, "gradient_norm", "grad_norm", "Gradient norm", clip, "L2 norm")
    yield _curve(runs, "learning_rate", "lr", "Learning rate", "", "learning rate")
    speed = ("tokens_per_second", "tokens_per_second", "Speed", "all ranks together")
    yield _curve(runs, *speed, "tokens per second")
    if any("expert_balance" in run.columns for run in runs):
        balance = ("expert_balance", "expert_balance", "Expert balance", "1 is even")
        yield _curve(runs, *balance, "load of the busiest ÷ mean expert")


def _curve(
    runs: Sequence[RunHistory],
    name: str,
    column: str,
    title: str,
    caption: str,
    unit: str,
    is_wide: bool = False,
) -> Picture:
    """One metric over all stages: every step faint, the mean of its neighbours bold."""
    axes = _axes(runs, unit, is_wide)
    for run, offset in zip(runs, _offsets(runs), strict=False):
        tokens, values = offset + run.column("tokens"), run.column(column)
        line = values if column == "lr" else smooth(values)
        thin = slice(None, None, -(-len(values) // _MOST_POINTS))
        axes.plot(tokens[thin], values[thin], color=HUES[0], alpha=0.25, linewidth=0.8)
        axes.plot(tokens[thin], line[thin], color=HUES[0], linewidth=1.8)
    if column in ("tokens_per_second", "lr"):
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(
        {"tokens_per_second": count_tick, "lr": rate_tick}.get(column, plain_tick)
    )
    return finish(axes, name, title, caption, is_wide)


def _held_out(runs: Sequence[RunHistory], key: str, title: str, unit: str) -> Iterator[Picture]:
    """One line per source; where there are too many to tell apart, only the extremes are named."""
    curves = _held_out_curves(runs, key)
    if not curves:
        return
    axes = _axes(runs, unit)
    sources = [source for source in curves if source != ALL_SOURCES]
    ends = {source: float(curves[source][1][-1]) for source in sources}
    colours = dict(zip(sources, HUES, strict=False))
    if len(sources) > len(HUES):
        colours = {
            min(ends, key=ends.__getitem__): HUES[0],
            max(ends, key=ends.__getitem__): HUES[1],
        }
    has_all = ALL_SOURCES in curves and len(sources) > 1
    for source in [*sources, *([ALL_SOURCES] if has_all else [])]:
        tokens, values = curves[source]
        colour = INK if source == ALL_SOURCES else colours.get(source, FAINT)
        width = 2.0 if source == ALL_SOURCES else 1.3
        marker = "o" if len(tokens) <= 25 else ""
        axes.plot(tokens, values, color=colour, linewidth=width, marker=marker, markersize=2.5)
    named = {source: (curves[source], colours[source]) for source in colours}
    if has_all:
        named["all sources"] = (curves[ALL_SOURCES], INK)
    if key == "accuracy":  # a share
        axes.set_ylim(0, 1.03)
    label_ends(axes, named)
    axes.yaxis.set_major_formatter(plain_tick)
    name = {"loss": "held_out_loss"}.get(key, key)
    yield finish(axes, name, title, "text never trained on", is_wide=False)


def _held_out_curves(
    runs: Sequence[RunHistory], key: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per source the tokens trained on and the values there; NaN before a model that is new."""
    points: dict[str, dict[float, float]] = {}
    for run, offset in zip(runs, _offsets(runs), strict=False):
        steps, tokens = run.column("step"), run.column("tokens")  # steps need not be alike
        for row in run.evaluations:
            if row.get(key) is not None:
                curve = points.setdefault(str(row["source"]), {})
                if curve and max(curve) <= offset and not said(run, "checkpoint", "init_from"):
                    curve[offset + 0.5] = np.nan  # between whole tokens: no line goes there
                curve[offset + float(np.interp(row["step"], steps, tokens))] = row[key]
    return {
        source: (np.array(list(curve)), np.array(list(curve.values())))
        for source, curve in points.items()
    }


def _loss_of(run: RunHistory) -> str:
    """The kind of loss that the run trains, by its settings."""
    mode = said(run, "run", "mode")
    if mode in _LOSSES:
        return _LOSSES[mode]
    return str(said(run, "sft", "objective")) or "cross_entropy"


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean of the neighbours of each value, 2 % of the curve to either side.

    The first values have fewer on both sides, so that a steep start keeps its height, and the last
    ones fewer after them, so that the end is as calm as the rest. NaN counts for nothing.
    """
    place = np.arange(len(values))
    reach = np.minimum(max(1, len(values) // 50), place)
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values))])
    known = np.concatenate([[0.0], np.cumsum(~np.isnan(values))])
    first, last = place - reach, np.minimum(place + reach + 1, len(values))
    with np.errstate(invalid="ignore"):
        means: np.ndarray = (sums[last] - sums[first]) / (known[last] - known[first])
    return means


def _offsets(runs: Sequence[RunHistory]) -> list[int]:
    """Tokens trained on before each run, and after the last: one number more than runs."""
    return [0, *np.cumsum([run.tokens for run in runs]).tolist()]


def _axes(runs: Sequence[RunHistory], unit: str, is_wide: bool = False) -> Axes:
    """Axes over the tokens of all runs, with the stages marked above them."""
    axes = pictures.axes("tokens trained on", unit, is_wide)
    axes.xaxis.set_major_formatter(count_tick)
    axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(8 if is_wide else 5))
    offsets = _offsets(runs)
    axes.set_xlim(0, offsets[-1])
    if len(runs) > 1:
        _mark_stages(axes, [run.name for run in runs], offsets, 640 if is_wide else 270)
    return axes


def _mark_stages(axes: Axes, names: list[str], offsets: list[int], width_points: float) -> None:
    """A line between stages; above the axes the number of each and, where it fits, its name."""
    for i, name in enumerate(names):
        if i:
            axes.axvline(offsets[i], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
        share = (offsets[i + 1] - offsets[i]) / offsets[-1]
        text = f"{i + 1}  {name}"
        if len(text) * _LETTER_POINTS > share * width_points:
            text = str(i + 1)
        anchor = axes.get_xaxis_transform()
        style: dict[str, Any] = {"fontsize": 8, "color": MUTED, "va": "bottom"}
        axes.annotate(
            text, (offsets[i], 1), (2, 3), xycoords=anchor, textcoords="offset points", **style
        )


def label_ends(axes: Axes, named: dict[str, tuple[tuple[np.ndarray, np.ndarray], str]]) -> None:
    """Names of curves in the right margin, level with their ends and never on one another."""
    low, high = axes.get_ylim()
    order = sorted(named, key=lambda name: named[name][0][1][-1])
    heights = spread([(named[n][0][1][-1] - low) / (high - low) for n in order], 0.065)
    for name, height in zip(order, heights, strict=True):
        (tokens, values), colour = named[name]
        short = name if len(name) <= 16 else name[:15] + "…"
        axes.annotate(
            short,
            (tokens[-1], values[-1]),
            (1.03, height),
            textcoords="axes fraction",
            color=colour,
            fontsize=8,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5},
        )
