"""Sets the look of pages' pictures: one style, and a `Picture` that follows light and dark pages.

    with pictures.style():
        axes = pictures.axes("tokens", "loss", is_wide=True)
        axes.plot(x, y, color=pictures.HUES[0])
        picture = pictures.finish(axes, "loss", "Training loss", "every step", is_wide=True)

Each is a PNG for the light, and an SVG that takes its colours and fonts from the page it stands in,
so that it is sharp and follows light and dark.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from megatron_qwen3.shown import shown_text
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.training.console import count

# Colour on paper -> CSS variable of the page. The hues are those of Okabe and Ito, which people
# with any kind of colour blindness tell apart.
INK, MUTED, FAINT = "#1d2129", "#6b7280", "#e2e5ea"
HUES = ("#0072b2", "#d55e00", "#009e73", "#b8579a", "#c98a00", "#3a9ad9", "#7a6a53")
_VARIABLES = {INK: "--ink", MUTED: "--muted", FAINT: "--faint"} | {
    hue: f"--hue-{i}" for i, hue in enumerate(HUES)
}
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # names come from files; a $ in one is a $
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",
}


@dataclass(frozen=True)
class Picture:
    """One picture: `name` is that of its file, `svg` an element to stand in an HTML page."""

    name: str
    title: str
    caption: str
    is_wide: bool
    svg: str
    png: bytes


def style() -> AbstractContextManager[None]:
    """A context in which pictures are drawn."""
    return mpl.rc_context(_STYLE)


def axes(x: str, y: str, is_wide: bool = False) -> Axes:
    """Empty axes with their labels."""
    figure = Figure(figsize=(10.4, 3.7) if is_wide else (5.1, 3.2), layout="constrained")
    drawn = figure.add_subplot()
    drawn.set_xlabel(x)
    drawn.set_ylabel(y)
    drawn.tick_params(length=0)
    return drawn


def make_logarithmic(axes: Axes, which: str, tick: Callable[[float, object], str]) -> None:
    """A logarithmic x or y axis, called when everything is drawn: labels at 1, 2, 5 where there
    are few decades, at 1 alone where there are many, and no others."""
    getattr(axes, f"set_{which}scale")("log")
    axis: Axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if math.log10(high / low) < 2.2 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter(tick)
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def spread(heights: Sequence[float], distance: float) -> list[float]:
    """Ascending heights, moved as little as a sweep up and one down need to keep a distance."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + distance) if placed else height)
    top = max(1.0, distance * (len(placed) - 1))
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], top)
        top = placed[i] - distance
    return placed


def save(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all; the suffix of `path` chooses the format."""
    _escape(figure)
    drawn = io.BytesIO()
    kind = path.suffix.removeprefix(".") or "png"
    figure.savefig(drawn, format=kind, dpi=160, facecolor="white")
    write_whole(path, [drawn.getbuffer()])


def _escape(figure: Figure) -> None:
    """Labels come from files."""
    for text in figure.findobj(Text):
        text.set_text(shown_text(text.get_text()))


def finish(axes: Axes, name: str, title: str, caption: str, is_wide: bool) -> Picture:
    """The drawn axes as a picture."""
    figure = axes.get_figure(root=True)
    assert figure
    _escape(figure)
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=160, facecolor="white")
    figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return Picture(
        name, title, caption, is_wide, _themed(shown_text(svg.getvalue())), png.getvalue()
    )


def _themed(svg: str) -> str:
    """The <svg> element alone, as wide as the page lets it be, with the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # ids that would repeat in every picture
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def count_tick(value: float, _: object) -> str:
    """1k, 2.5M."""
    text = count(value)
    return f"{float(text[:-1]):g}{text[-1]}" if text[-1].isalpha() else text


def rate_tick(value: float, _: object) -> str:
    """3e-4, 1.5e-3."""
    mantissa, _, power = f"{value:.1e}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(power)}" if value else "0"


def power_tick(value: float, _: object) -> str:
    """2e18."""
    mantissa, _, power = f"{value:.0e}".partition("e")
    return f"{mantissa}e{int(power)}"


def plain_tick(value: float, _: object) -> str:
    """Three digits."""
    return f"{value:.3g}"
