"""Draws a curriculum, and writes its page: the text of each stage, before it is trained.

`write(curriculum, out)` draws the make-up of the stages by domain and by length, the tokens of
every language against those there are, and how often text is read.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from data_prep.curriculum import Curriculum
from data_prep.mixing.summary import SummaryRow, labels_of, summary, texts, total
from megatron_qwen3.pages import page, pictures
from megatron_qwen3.pages.curriculum_rows import HEADER, OF_TEXTS, cells
from megatron_qwen3.pages.pictures import FAINT, HUES, INK, MUTED, Picture
from megatron_qwen3.shown import shown
from megatron_qwen3.training.console import count

_MAKE_UP = ("domain", "length", "quality", "education")


def write(curriculum: Curriculum, out: Path) -> None:
    """A page that needs no other file, its pictures as PNG in the folder of the same name."""
    with pictures.style():
        drawn = list(_pictures(curriculum))
    tiles = [(count(total(curriculum.stages[0]).available), "tokens there are")]
    tiles += [(count(stage.tokens), f"tokens in stage {stage.name}") for stage in curriculum.stages]
    tables = [
        page.table(f"{stage.name} by {label}", [HEADER, *map(cells, summary(stage, label))])
        for stage in curriculum.stages
        for label in labels_of(curriculum)
    ]
    tables += [
        page.table(f"{stage.name} by {OF_TEXTS}", [HEADER, *map(cells, texts(stage))])
        for stage in curriculum.stages
        if texts(stage)
    ]
    names = " → ".join(stage.name for stage in curriculum.stages)
    page.write(out, "Curriculum", names, [page.numbers(tiles), page.FIGURES, *tables], drawn)


def _pictures(curriculum: Curriculum) -> Iterator[Picture]:
    labels = labels_of(curriculum)
    for label in _MAKE_UP:
        if label in labels:
            rows = [summary(stage, label) for stage in curriculum.stages]
            yield _make_up(curriculum, label, f"by_{label}", rows)
    if all(rows := [texts(stage) for stage in curriculum.stages]):
        yield _make_up(curriculum, OF_TEXTS, "by_texts", rows)
    yield _languages(curriculum)
    yield _epochs(curriculum)


def _make_up(
    curriculum: Curriculum, label: str, name: str, rows: Sequence[Sequence[SummaryRow]]
) -> Picture:
    """A bar for each stage, and one for all text, divided by the values of a label.

    rows: of each stage.
    """
    order = [row.value for row in sorted(rows[0], key=lambda r: -r.available)]
    figure = Figure(figsize=(10.4, 1.3 + 0.42 * len(curriculum.stages)), layout="constrained")
    axes = figure.add_subplot()
    names = ["there is", *(shown(stage.name) for stage in curriculum.stages)]
    by_stage = [{row.value: row for row in of_stage} for of_stage in rows]
    shares = np.array(
        [[by_stage[0][v].natural for v in order], *([r[v].share for v in order] for r in by_stage)]
    )
    left = np.zeros(len(names))
    for value, share, colour in zip(order, shares.T, _colours(len(order)), strict=True):
        axes.barh(names, share, left=left, color=colour, label=value, height=0.62)
        for y, (width, start) in enumerate(zip(share, left, strict=True)):
            if width > 0.03:
                text = f"{100 * width:.0f} %"
                axes.text(start + width / 2, y, text, ha="center", va="center", color="white")
        left += share
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    figure.legend(loc="outside lower center", ncols=min(8, len(order)), frameon=False)
    return pictures.finish(axes, name, f"Stages by {label}", "share of tokens", is_wide=True)


def _languages(curriculum: Curriculum) -> Picture:
    """Tokens of each language, those with most text first, in all and read in each stage."""
    first = curriculum.stages[0]
    order = sorted(summary(first, "language"), key=lambda row: -row.available)
    axes = pictures.axes("", "tokens", is_wide=True)
    place = np.arange(len(order))
    axes.bar(place, [row.available for row in order], color=FAINT, width=0.9, label="there are")
    for stage, colour in zip(curriculum.stages, HUES, strict=False):
        read = {row.value: row.tokens for row in summary(stage, "language")}
        tokens = [read[row.value] or np.nan for row in order]
        axes.plot(place, tokens, "o", color=colour, markersize=3.5, label=stage.name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(pictures.count_tick)
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.set_xticks(place, [row.value for row in order], rotation=90, fontsize=5.5)
    if len(order) <= 30:
        axes.tick_params(axis="x", labelsize=8)
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False, ncols=4)
    title = "Tokens of each language"
    return pictures.finish(axes, "languages", title, "logarithmic", is_wide=True)


def _epochs(curriculum: Curriculum) -> Picture:
    """How often sources were read when each stage ends, by the part of all text they are."""
    unit = "epochs, stages before included"
    axes = pictures.axes("% of all text, most read first", unit, is_wide=True)
    for stage, colour in zip(curriculum.stages, HUES, strict=False):
        shares = sorted(stage.shares, key=lambda share: -share.epochs_after)
        tokens = np.cumsum([0, *(share.source.training_tokens for share in shares)])
        epochs = [share.epochs_after for share in shares]
        place = 100 * tokens / tokens[-1]
        axes.step(place, [*epochs, epochs[-1]], where="post", color=colour, label=stage.name)
    axes.axhline(1, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    caption = "above the dashed line again"
    return pictures.finish(axes, "epochs", "How often text is read", caption, is_wide=True)


def _colours(number: int) -> list[str]:
    return [*HUES, *[MUTED] * number][:number]
