"""Draws a run whose model samples answers: one picture for each question that a person asks.

    draw_all(run)          # of a RunHistory of training/history.py with batches of rollouts

The x axis is the run's steps: a batch of rollouts stands at its first update. A picture without
numbers is not drawn. Where there are more sources than colours, only the extremes are named.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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
    power_tick,
    style,
)
from megatron_qwen3.pages.settings_said import said
from megatron_qwen3.pages.training_pictures import label_ends, smooth
from megatron_qwen3.training.history import RunHistory
from megatron_qwen3.training.metrics_file import ALL_SOURCES

_STEPS = "updates"
Curve = tuple[np.ndarray, np.ndarray]  # steps, values


class MetricCurves(NamedTuple):
    """A picture of several metrics of one kind: their column, and the name that a person reads."""

    name: str
    title: str
    caption: str
    unit: str
    columns: Mapping[str, str]
    is_share: bool = False
    is_logarithmic: bool = False


_PREFIXES = {"parts": "part/", "hacking": "hacking/"}  # of pictures with a curve for each name
_OF_BATCHES = (
    MetricCurves(
        "parts",
        "Parts of the reward",
        "mean score of each, before its weight",
        "score",
        {},
    ),
    MetricCurves(
        "hacking",
        "Signs of reward hacking",
        "shares; posttrain/rewards/hacking.py explains each",
        "share",
        {},
        is_share=True,
    ),
    MetricCurves(
        "answer_lengths",
        "Lengths",
        "of all answers, of right and of wrong ones",
        "tokens of an answer",
        {"length": "all", "length_right": "right", "length_wrong": "wrong"},
    ),
    MetricCurves(
        "cut_answers",
        "Cut and failed answers",
        "truncated ones are treated as rl.truncated says",
        "share of the answers",
        {"truncated": "truncated", "failed": "failed"},
        is_share=True,
    ),
    MetricCurves(
        "groups",
        "Groups and answers that teach",
        "groups whose answers have no advantage over each other; answers that are trained",
        "share",
        {"zero_groups": "groups alike", "trained": "trained", "scored": "scored"},
        is_share=True,
    ),
    MetricCurves(
        "advantages", "Advantages", "of trained tokens", "mean |A|", {"advantage": "mean"}
    ),
    MetricCurves(
        "age",
        "Age of the weights that sampled",
        "updates between an answer's first token and its batch's first update",
        "updates",
        {"age": "mean", "age_most": "most"},
    ),
    MetricCurves(
        "refit",
        "New weights for the servers",
        "from their pause to their agreement with the model in training",
        "seconds",
        {"refit/seconds": "a refit"},
    ),
    MetricCurves(
        "refit_difference",
        "Servers against trainer after a refit",
        "largest difference of a log-probability on the fixed prompts",
        "nats",
        {"refit/difference": "largest"},
        is_logarithmic=True,
    ),
)
_OF_UPDATES = (
    MetricCurves(
        "agreement",
        "Agreement with the teacher",
        "sampled tokens that are the teacher's most probable ones",
        "share of the tokens",
        {"agreement": "agreement"},
        is_share=True,
    ),
    MetricCurves(
        "log_probs",
        "Log-probability of sampled tokens",
        "by the student and by its teacher",
        "nats",
        {"student_log_prob": "student", "teacher_log_prob": "teacher"},
    ),
    MetricCurves("kl", "Divergence from the reference", "", "nats per token", {"kl": "KL"}),
    MetricCurves(
        "policy_change",
        "Change since the rollouts",
        "KL from before a batch's first update",
        "nats per token",
        {"policy_change": "KL"},
    ),
    MetricCurves(
        "clip_share",
        "Clipped and limited tokens",
        "ratios that the clip acts on; importance weights that were limited",
        "share of the tokens",
        {"clip_share": "clipped", "importance_limited": "limited"},
    ),
    MetricCurves(
        "mismatch",
        "Sampler against trainer",
        "difference of log-probabilities of sampled tokens, before the update",
        "nats",
        {"mismatch": "mean", "mismatch_max": "largest", "mismatch_kl": "KL"},
        is_logarithmic=True,
    ),
)


def draw_all(run: RunHistory) -> list[Picture]:
    """Every picture that the run has numbers for."""
    with style():
        return list(_pictures(run))


def _pictures(run: RunHistory) -> Iterator[Picture]:
    yield from _by_source(run, "reward", "Reward", "of all answers bold", "reward", is_wide=True)
    yield from _by_source(run, "pass_rate", "Right answers", "by source and mode", "share", False)
    yield from _held_out(run)
    yield from _entropy(run)
    for asked in _OF_UPDATES:
        yield from _curves(run.columns, asked)
    for asked in _OF_BATCHES:
        if prefix := _PREFIXES.get(asked.name):
            names = [name for name in run.rollouts if name.startswith(prefix)]
            asked = asked._replace(columns={name: name.removeprefix(prefix) for name in names})
        yield from _curves(run.rollouts, asked)
    yield from _time(run)
    yield from _speed(run)


def _by_source(
    run: RunHistory, metric: str, title: str, caption: str, unit: str, is_wide: bool
) -> Iterator[Picture]:
    """A line for each source and mode, and one for all answers."""
    prefix = f"{metric}/"
    names = {name: name.removeprefix(prefix) for name in run.rollouts if name.startswith(prefix)}
    curves = _known(run.rollouts, names)
    whole = _known(run.rollouts, {metric: "all answers"})
    if not whole:
        return
    axes = _axes(unit, is_wide)
    _draw(axes, curves, _colours(curves))
    _draw(axes, whole, {"all answers": INK}, width=2.0)
    if metric == "pass_rate":
        axes.set_ylim(0, 1.03)
    _name(axes, {**curves, **whole}, _colours(curves) | {"all answers": INK})
    yield finish(axes, f"rollout_{metric}", title, caption, is_wide)


def _held_out(run: RunHistory) -> Iterator[Picture]:
    """Held-out tasks by source: the share that is right, or the reward where none is verified."""
    for key, unit in (("pass_rate", "share that is right"), ("reward", "reward")):
        points: dict[str, list[tuple[float, float]]] = {}
        for row in run.evaluations:
            if row.get(key) is not None and "answers" in row:
                points.setdefault(str(row["source"]), []).append((row["step"], row[key]))
        if not points:
            continue
        if len(points) == 2:  # one source, and all of them
            points.pop(ALL_SOURCES, None)
        curves = {name: _curve(np.array(found)) for name, found in points.items()}
        axes = _axes(unit, is_wide=False)
        colours = _colours({n: c for n, c in curves.items() if n != ALL_SOURCES})
        colours |= {ALL_SOURCES: INK}
        _draw(axes, curves, colours, marker="o")
        _name(axes, curves, colours)
        yield finish(axes, f"held_out_{key}", "Held-out tasks", "never trained on", is_wide=False)


def _entropy(run: RunHistory) -> Iterator[Picture]:
    """The entropy, and the band that rl.entropy keeps it in."""
    curves = _known(run.columns, {"entropy": "entropy"})
    if not curves:
        return
    axes = _axes("nats per token", is_wide=False)
    _draw(axes, curves, {"entropy": HUES[0]})
    low, high = (said(run, "rl", "entropy", end) for end in ("low", "high"))
    caption = "over the whole vocabulary"
    for edge in (low, high):
        if isinstance(edge, int | float) and edge > 0:
            axes.axhline(edge, color=HUES[1], linestyle="--", linewidth=1)
            caption = "over the whole vocabulary; dashed: the band of rl.entropy"
    axes.set_ylim(bottom=0)
    yield finish(axes, "entropy", "Entropy", caption, is_wide=False)


def _curves(columns: Mapping[str, np.ndarray], asked: MetricCurves) -> Iterator[Picture]:
    curves = _known(columns, asked.columns)
    if asked.is_logarithmic:
        curves = {name: (x, y) for name, (x, y) in curves.items() if np.nanmax(y) > 0}
    if not curves:
        return
    axes = _axes(asked.unit, is_wide=False)
    _draw(axes, curves, _colours(curves))
    if asked.is_logarithmic:
        pictures.make_logarithmic(axes, "y", power_tick)
    elif asked.is_share:
        axes.set_ylim(0, 1.03)
    elif all(np.nanmin(y) >= 0 for _, y in curves.values()):
        axes.set_ylim(bottom=0)
    if len(curves) > 1:
        _legend(axes)
    yield finish(axes, asked.name, asked.title, asked.caption, is_wide=False)


def _time(run: RunHistory) -> Iterator[Picture]:
    """Time of each batch of rollouts and of its updates, by purpose, as shares of their sum."""
    seconds = seconds_by_kind(run)
    if not seconds:
        return
    total = np.sum([*seconds.values()], axis=0)
    if not total.all():
        return
    axes = _axes("share of the time", is_wide=True)
    colours = [HUES[n % len(HUES)] for n in range(len(seconds))]
    shares = [smooth(spent / total) for spent in seconds.values()]
    axes.stackplot(run.rollouts["step"], *shares, labels=list(seconds), colors=colours, alpha=0.8)
    axes.set_ylim(0, 1)
    axes.margins(x=0)
    _legend(axes)
    what = "of a batch of rollouts with its updates"
    yield finish(axes, "time", "Where the time goes", what, is_wide=True)


def seconds_by_kind(run: RunHistory) -> dict[str, np.ndarray]:
    """Seconds of each batch of rollouts, by purpose; `update`: of its updates."""
    prefix = "seconds/"
    kinds = {n.removeprefix(prefix): c for n, c in run.rollouts.items() if n.startswith(prefix)}
    if not kinds:
        return {}
    first = run.rollouts["step"]
    steps, spent = run.column("step"), run.column("step_seconds")
    batch = np.searchsorted(first, steps, side="right") - 1
    known = batch >= 0
    updates = np.bincount(batch[known], np.nan_to_num(spent[known]), minlength=len(first))
    return {name: np.nan_to_num(column) for name, column in kinds.items()} | {"update": updates}


def _speed(run: RunHistory) -> Iterator[Picture]:
    curves = _known(run.rollouts, {"rollout_tokens_per_second": "rollouts"})
    curves |= _known(run.columns, {"tokens_per_second": "updates"})
    if "rollouts" not in curves:
        return
    axes = _axes("tokens per second", is_wide=False)
    _draw(axes, curves, _colours(curves))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(count_tick)
    _legend(axes)
    yield finish(axes, "rollout_speed", "Speed", "sampling, and training on it", is_wide=False)


def _known(columns: Mapping[str, np.ndarray], names: Mapping[str, str]) -> dict[str, Curve]:
    """Curves by the names that a person reads; those without a number are left out."""
    found = {}
    for column, name in names.items():
        values = columns.get(column)
        if values is not None and not np.isnan(values).all():
            found[name] = (columns["step"], values)
    return found


def _curve(points: np.ndarray) -> Curve:
    return points[:, 0], points[:, 1]


def _axes(unit: str, is_wide: bool) -> Axes:
    axes = pictures.axes(_STEPS, unit, is_wide)
    axes.xaxis.set_major_formatter(count_tick)
    axes.yaxis.set_major_formatter(plain_tick)
    return axes


def _draw(
    axes: Axes,
    curves: Mapping[str, Curve],
    colours: Mapping[str, str],
    width: float = 1.5,
    marker: str = "",
) -> None:
    """Each batch faint, the mean around it bold; few points are marked."""
    for name, (steps, values) in curves.items():
        colour = colours.get(name, FAINT)
        dots = marker or ("o" if len(steps) <= 25 else "")
        more: dict[str, Any] = {"marker": dots, "markersize": 2.5}
        if len(steps) > 25 and not marker:
            axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
            values = smooth(values)
        axes.plot(steps, values, color=colour, linewidth=width, label=name, **more)


def _colours(curves: Mapping[str, Curve]) -> dict[str, str]:
    """A colour for each, or for the highest and the lowest alone where there are too many."""
    names: Sequence[str] = list(curves)
    if len(names) > len(HUES):
        ends = {name: _last(curves[name]) for name in names}
        names = [min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)]
    return dict(zip(names, HUES, strict=False))


def _last(curve: Curve) -> float:
    known = curve[1][~np.isnan(curve[1])]
    return float(known[-1]) if len(known) else -np.inf


def _name(axes: Axes, curves: Mapping[str, Curve], colours: Mapping[str, str]) -> None:
    """Names of the coloured curves, in the right margin."""
    ends = {}
    for name, (steps, values) in curves.items():
        known = ~np.isnan(values)
        if name in colours:
            ends[name] = ((steps[known], smooth(values[known])), colours[name])
    label_ends(axes, ends)


def _legend(axes: Axes) -> None:
    """Above the axes, where it hides no point."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    axes.legend(frameon=False, ncols=4, labelcolor=MUTED, **place)
