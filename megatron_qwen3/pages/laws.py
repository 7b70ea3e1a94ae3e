"""Writes the page about scaling laws: its pictures, and the places of these and of the tables."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from megatron_qwen3.pages import laws_rows, page, pictures
from megatron_qwen3.pages.pictures import (
    FAINT,
    HUES,
    INK,
    Picture,
    count_tick,
    power_tick,
    rate_tick,
)
from megatron_qwen3.studies.laws import Recommendation, StageLaws
from megatron_qwen3.studies.levels import levels
from megatron_qwen3.studies.measurements import Measurement
from megatron_qwen3.studies.tuning import TuningLaw
from megatron_qwen3.training.console import count

_DASHES = ("-", "--", ":", "-.")  # for more and more tokens


def write(found: Sequence[StageLaws], advice: Sequence[Recommendation], out: Path) -> None:
    """Write the page to `out` and its pictures to the folder of the same name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with pictures.style():
        drawn = [picture for laws in found for picture in _pictures(laws)]
    body = [_key_numbers(found), page.FIGURES]
    if advice:
        body.append(page.table("How to train the target", laws_rows.advice_rows(advice)))
        for one in advice:
            settings = [("TOML", one.overlay())]
            body.append(page.files(f"Settings {one.stage}", settings, is_open=True))
        if doubts := laws_rows.far(advice):
            body.append(page.text("How far this reaches", doubts))
    for laws in found:
        prefix = f"{laws.stage}: " if laws.stage else ""
        body += [page.table(prefix + title, rows) for title, rows in laws_rows.tables(laws)]
        if laws.missing or laws.doubts:
            unknown = [*laws.doubts, *laws.missing]
            body.append(page.text(prefix + "Not determined by these runs", unknown))
    stages = ", ".join(laws.stage for laws in found if laws.stage)
    page.write(out, "Scaling laws", stages or "one stage", body, drawn)


def _key_numbers(found: Sequence[StageLaws]) -> Markup:
    tiles = [(str(sum(len(laws.runs) for laws in found)), "runs")]
    for laws in found:
        if laws.loss_law:
            tiles.append((f"{laws.loss_law.E:.3f}", "loss that no size goes below, nats"))
            tiles.append((f"C^{laws.loss_law.size_exponent:.2f}", "best size over compute"))
        if laws.held_out:
            error = f"{100 * laws.held_out.mean_error:.2f} %"
            tiles.append((error, "error on the largest runs, predicted from the smaller"))
    return page.numbers(tiles)


def _pictures(laws: StageLaws) -> Iterator[Picture]:
    prefix = f"{laws.stage}_" if laws.stage else ""
    if laws.loss_law:
        yield _loss_over_compute(laws, prefix)
        yield _predicted_over_measured(laws, prefix)
    if laws.valleys:
        yield _valleys(laws, prefix)
    if laws.best_size:
        yield _best_size(laws, prefix)
    rates = [run for run in laws.runs if math.isfinite(run.lr)]
    if laws.optima and rates:
        yield _sweeps(laws, prefix)
    for name, title, unit, found, values in (
        ("lr", "Best learning rate", "learning rate", laws.lr_laws, [o.lr for o in laws.optima]),
        ("batch", "Best batch", "tokens", laws.batch_laws, [o.batch_tokens for o in laws.optima]),
    ):
        if found:
            yield _tuning(laws, prefix + name, title, unit, found, values)


def _loss_over_compute(laws: StageLaws, prefix: str) -> Picture:
    law = laws.loss_law
    assert law
    axes = pictures.axes("floating point operations", "nats per token", is_wide=True)
    apart = {p.run for p in laws.held_out.predictions} if laws.held_out else set()
    sizes = sorted({run.parameters for run in laws.best})
    for i, size in enumerate(sizes):
        runs = sorted((r for r in laws.best if r.parameters == size), key=lambda r: r.tokens)
        colour = HUES[i % len(HUES)]
        _points(axes, runs, apart, colour)
        tokens = np.geomspace(runs[0].tokens / 1.5, runs[-1].tokens * 1.5, 60)
        compute = tokens * runs[-1].compute / runs[-1].tokens
        axes.plot(compute, law.loss(size, tokens), color=colour, linewidth=1.2, label=count(size))
    budgets = np.geomspace(*_ends([run.compute for run in laws.best], 3), 80)
    best = [float(law.loss(*law.allocation(c))) for c in budgets]
    axes.plot(budgets, best, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    pictures.make_logarithmic(axes, "x", power_tick)
    axes.legend(title="parameters", frameon=False, fontsize=7.5, title_fontsize=7.5)
    caption = "lines are the law; dashed: compute spent best; hollow: predicted, not fitted"
    return pictures.finish(axes, f"{prefix}loss", "Loss over compute", caption, is_wide=True)


def _points(axes: Axes, runs: Sequence[Measurement], apart: set[Measurement], colour: str) -> None:
    for run in runs:
        face = "none" if run in apart else colour
        axes.plot(run.compute, run.loss, "o", markersize=4.5, color=colour, markerfacecolor=face)


def _predicted_over_measured(laws: StageLaws, prefix: str) -> Picture:
    law, axes = laws.loss_law, pictures.axes("measured, nats per token", "predicted")
    assert law
    measured = [run.loss for run in laws.best]
    axes.plot(_ends(measured, 1.01), _ends(measured, 1.01), color=FAINT)
    fitted = [float(law.loss(run.parameters, run.tokens)) for run in laws.best]
    axes.plot(measured, fitted, "o", markersize=3.5, color=HUES[0], label="fitted to all")
    if laws.held_out:
        apart = laws.held_out.predictions
        x, y = [p.run.loss for p in apart], [p.predicted for p in apart]
        label = "predicted from the smaller"
        axes.plot(x, y, "o", markersize=5, color=HUES[1], markerfacecolor="none", label=label)
    axes.legend(frameon=False, fontsize=7.5)
    return pictures.finish(axes, f"{prefix}fit", "Predicted against measured", "", is_wide=False)


def _valleys(laws: StageLaws, prefix: str) -> Picture:
    axes = pictures.axes("parameters", "nats per token")
    for i, valley in enumerate(laws.valleys):
        colour = HUES[i % len(HUES)]
        axes.plot(valley.sizes, valley.losses, "o", markersize=3.5, color=colour)
        x = np.geomspace(min(valley.sizes), max(valley.sizes), 60)
        label = f"{valley.compute:.1g}"
        curve = np.polyval(valley.coefficients, np.log(x))
        axes.plot(x, curve, color=colour, linewidth=1.2, label=label)
        if valley.bottom == "inside":
            axes.plot(valley.parameters, valley.loss, "x", color=INK, markersize=5)
    pictures.make_logarithmic(axes, "x", count_tick)
    axes.legend(title="FLOP", frameon=False, fontsize=7.5, title_fontsize=7.5)
    caption = "runs of equal compute; a cross where a parabola is lowest"
    return pictures.finish(axes, f"{prefix}isoflop", "IsoFLOP valleys", caption, is_wide=False)


def _best_size(laws: StageLaws, prefix: str) -> Picture:
    axes = pictures.axes("floating point operations", "parameters")
    inside = [v for v in laws.valleys if v.bottom == "inside"]
    compute = np.geomspace(*_ends([v.compute for v in inside], 3), 40)
    sizes = [v.parameters for v in inside]
    axes.plot([v.compute for v in inside], sizes, "o", markersize=4, color=HUES[0])
    assert laws.best_size
    line = [laws.best_size(c) for c in compute]
    axes.plot(compute, line, color=HUES[0], linewidth=1.2, label="valleys")
    if laws.loss_law:
        other = [laws.loss_law.allocation(c)[0] for c in compute]
        axes.plot(compute, other, color=HUES[1], linewidth=1.2, label="law of loss")
    pictures.make_logarithmic(axes, "x", power_tick)
    pictures.make_logarithmic(axes, "y", count_tick)
    axes.legend(frameon=False, fontsize=7.5)
    return pictures.finish(axes, f"{prefix}best_size", "Best size", "", is_wide=False)


def _sweeps(laws: StageLaws, prefix: str) -> Picture:
    """Losses over the learning rate, one line per size, tokens and batch."""
    axes = pictures.axes("learning rate", "nats per token", is_wide=True)
    groups: dict[tuple[float, int, float], list[Measurement]] = {}
    lengths = levels([run.tokens for run in laws.runs]).tolist()
    for run, length in zip(laws.runs, lengths, strict=True):
        groups.setdefault((run.parameters, length, run.batch_tokens), []).append(run)
    swept = {key: runs for key, runs in sorted(groups.items()) if len(runs) > 1}
    sizes, lengths = (sorted({key[i] for key in swept}) for i in (0, 1))
    for (size, length, batch), runs in swept.items():
        colour, dashes = (
            HUES[sizes.index(size) % len(HUES)],
            _DASHES[lengths.index(length) % len(_DASHES)],
        )
        points = sorted((run.lr, run.loss) for run in runs)
        axes.plot(*zip(*points, strict=True), dashes, marker="o", markersize=2.5, color=colour)
        axes.annotate(count(batch), points[-1], (4, -2), textcoords="offset points", fontsize=6.5)
    for size in sizes:
        axes.plot([], [], color=HUES[sizes.index(size) % len(HUES)], label=count(size))
    pictures.make_logarithmic(axes, "x", rate_tick)
    axes.legend(title="parameters", frameon=False, fontsize=7.5, title_fontsize=7.5)
    caption = "each line a batch, its tokens at the end; dashed, dotted: more tokens in all"
    title = "Sweeps of the learning rate"
    return pictures.finish(axes, f"{prefix}sweeps", title, caption, is_wide=True)


def _tuning(
    laws: StageLaws,
    name: str,
    title: str,
    unit: str,
    found: Sequence[TuningLaw],
    values: Sequence[float],
) -> Picture:
    axes = pictures.axes("floating point operations", unit)
    law = found[0]
    known = [(o, y) for o, y in zip(laws.optima, values, strict=True) if math.isfinite(y)]
    compute = [o.compute for o, _ in known]
    told = [law(o.parameters, o.tokens, o.compute) for o, _ in known]
    axes.plot(compute, [y for _, y in known], "o", markersize=4, color=HUES[0], label="found")
    axes.plot(compute, told, "_", markersize=12, color=HUES[1], label="law")
    pictures.make_logarithmic(axes, "x", power_tick)
    pictures.make_logarithmic(axes, "y", rate_tick if unit == "learning rate" else count_tick)
    axes.legend(frameon=False, fontsize=7.5)
    return pictures.finish(axes, f"{name}_law", title, laws_rows.formula(law), is_wide=False)


def _ends(values: Sequence[float], stretch: float) -> tuple[float, float]:
    return min(values) / stretch, max(values) * stretch
