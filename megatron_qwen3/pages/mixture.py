"""Writes the page about a mixture found by small runs: pictures, and places of these and tables.

write(content, recipe, out)      # of mixture.json, and the recipe's text
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from megatron_qwen3.pages import mixture_rows, page, pictures
from megatron_qwen3.pages.pictures import FAINT, HUES, INK, Picture
from megatron_qwen3.studies.mixture.finding import CELLS
from megatron_qwen3.training.console import count

Content = dict[str, Any]

_SHOWN = 40  # cells


def write(content: Content, recipe: str, out: Path) -> None:
    """Write the page to `out` and its pictures to the folder of the same name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with pictures.style():
        drawn = list(_pictures(content))
    proxies = content["proxies"]
    tiles = [
        (str(proxies["count"]), "mixtures tried"),
        (count(proxies["parameters"]), "parameters of a proxy"),
        (count(proxies["tokens"]), "tokens of each"),
        (f"{proxies['flops']:.2g}", "floating point operations of all runs"),
        (f"{content['fits'][0]['rank']:.2f}", "rank correlation of losses left out"),
    ]
    body = [page.numbers(tiles), page.text("Result", mixture_rows.sentences(content))]
    body.append(page.FIGURES)
    body += [page.table(title, rows) for title, rows in mixture_rows.tables(content)]
    body.append(page.files("For mix_curriculum.py mix", [("recipe.toml", recipe)]))
    page.write(out, "Mixture", ", ".join(content["by"]), body, drawn)


def _pictures(content: Content) -> Iterator[Picture]:
    yield _shares(content)
    yield _predicted(content)
    if content["checks"]:
        yield _checks(content)
    if len(content["stages"]) > 1:
        yield _stages(content)


def _shares(content: Content) -> Picture:
    """Each cell's share in the mixtures that are compared, the largest first."""
    cells = sorted(content["cells"], key=lambda cell: -cell["share"])[:_SHOWN]
    names = list(cells[0]["shares"])
    names = [*(name for name in names if name != CELLS), CELLS]
    figure = Figure(figsize=(10.4, 1.2 + 0.42 * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(cells))
    height = 0.8 / len(names)
    for k, name in enumerate(names):
        shares = [100 * cell["shares"][name] for cell in cells]
        colour = HUES[0] if name == CELLS else (FAINT, HUES[4], HUES[3])[k % 3]
        axes.barh(
            places + (k - (len(names) - 1) / 2) * height, shares, height, color=colour, label=name
        )
    axes.set_yticks(places, [cell["name"] for cell in cells])
    axes.tick_params(length=0, labelcolor=INK)
    axes.invert_yaxis()
    axes.set_xlabel("% of tokens")
    axes.grid(visible=False, axis="y")
    axes.legend(frameon=False)
    return pictures.finish(axes, "shares", "Shares of cells", "", is_wide=True)


def _predicted(content: Content) -> Picture:
    """The objective of every mixture, predicted by a fit that had not seen it."""
    axes = pictures.axes("measured, nats per token", "predicted without it")
    measured, predicted = content["measured"], content["predicted"]
    ends = [min(*measured, *predicted), max(*measured, *predicted)]
    axes.plot(ends, ends, color=FAINT)
    axes.plot(measured, predicted, "o", color=HUES[0], markersize=4)
    fit = content["fits"][0]
    caption = f"{fit['form']}, R² {fit['r2']:.2f}, rank correlation {fit['rank']:.2f}"
    return pictures.finish(axes, "predicted", "Losses of mixtures left out", caption, is_wide=False)


def _checks(content: Content) -> Picture:
    """The objective of each mixture that was run, a point for each seed."""
    axes = pictures.axes("", "held-out loss, nats per token")
    checks = sorted(content["checks"], key=lambda check: check["name"] == CELLS)
    for place, check in enumerate(checks):
        colour = HUES[0] if check["name"] == CELLS else HUES[1]
        losses = check["losses"]
        axes.plot([place] * len(losses), losses, "o", color=colour, markersize=4, alpha=0.6)
        mean = sum(losses) / len(losses)
        axes.plot([place - 0.25, place + 0.25], [mean, mean], color=colour)
    measured = np.array(content["measured"])
    axes.axhline(float(measured.min()), color=FAINT, linewidth=0.9)
    axes.set_xticks(range(len(checks)), [check["name"] for check in checks])
    axes.set_xlim(-0.6, len(checks) - 0.4)
    caption = "a point per seed, and the mean; grey: the best mixture tried before"
    return pictures.finish(axes, "checks", "Mixtures that were run", caption, is_wide=False)


def _stages(content: Content) -> Picture:
    """The shares of the largest cells from stage to stage."""
    axes = pictures.axes("stage", "% of tokens", is_wide=True)
    cells = sorted(content["cells"], key=lambda cell: -max(cell["stages"]))[: len(HUES)]
    places = range(len(content["stages"]))
    for cell, colour in zip(cells, HUES, strict=False):
        shares = [100 * share for share in cell["stages"]]
        axes.plot(places, shares, "o-", color=colour, markersize=4, label=cell["name"])
    axes.set_xticks(places, content["stages"])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=7.5)
    return pictures.finish(axes, "stages", "A mixture per stage", "largest cells", is_wide=True)
