"""Draws the result of a search: memory and time of every layout, part by part, as stacked bars."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from megatron_qwen3.pages import pictures
from megatron_qwen3.planner.question import Question
from megatron_qwen3.planner.search import LayoutPlan

_MORE = (
    *("#56606e", "#a8b3c1", "#e2b93b", "#4a2c6f", "#8fd175", "#c44e52", "#222222"),
    *("#f2a0a1", "#003f5c", "#9ad1d4", "#6b8e23", "#d9d0c1", "#8b1e3f", "#b5a0e3", "#5c4033"),
)
_COLOURS = (*pictures.HUES, *_MORE)
_VISIBLE = 0.004  # of the longest bar: shorter parts are not drawn


def draw(question: Question, plans: list[LayoutPlan], path: Path) -> None:
    """Write the picture; its suffix chooses the format."""
    with pictures.style():
        figure = Figure(figsize=(11, 0.36 * len(plans) + 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        names = [_name(i, plan) for i, plan in enumerate(plans)]
        memory = [{k: v / 1e9 for k, v in plan.memory.parts().items()} for plan in plans]
        seconds = [plan.step.parts for plan in plans]
        # One colour means one part, in either half.
        parts = dict.fromkeys([*_visible(memory), *_visible(seconds)])
        colours = {part: _COLOURS[i % len(_COLOURS)] for i, part in enumerate(parts)}
        _stack(left, names, memory, colours)
        left.axvline(question.cluster.memory_gb, color=pictures.INK, linewidth=1)
        left.set_xlabel(f"GB per GPU; the line is the memory of {question.cluster.name}")
        _stack(right, names, seconds, colours)
        right.set_xlabel("seconds per step")
        right.set_yticks([])
        figure.suptitle(
            f"{question.model.preset or 'model'} on {question.gpus} {question.cluster.name}"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures.save(figure, path)


def _visible(bars: list[dict[str, float]]) -> list[str]:
    largest = max(sum(parts.values()) for parts in bars)
    return [part for part in bars[0] if max(parts[part] for parts in bars) > _VISIBLE * largest]


def _stack(
    axes: Axes, names: list[str], bars: list[dict[str, float]], colours: dict[str, str]
) -> None:
    starts = [0.0] * len(bars)
    for part in _visible(bars):
        widths = [parts[part] for parts in bars]
        axes.barh(names, widths, left=starts, color=colours[part], label=part, height=0.7)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.grid(visible=False, axis="y")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, frameon=False, fontsize=7)


def _name(index: int, plan: LayoutPlan) -> str:
    sizes = plan.job.sizes
    parts = [f"{name}{size}" for name, size in sizes.items() if size > 1] or ["dp"]
    text = " ".join([*parts, f"mb{plan.job.micro_batch}"])
    return f"{index + 1}  {text} {plan.recompute}" + (" *" if plan.needs else "")
