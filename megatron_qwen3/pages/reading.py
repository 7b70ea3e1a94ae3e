"""Writes the page about reading beyond the trained length, and its table.

    tell(content)                                    # on the terminal
    write(content, Path("runs/long/report.html"))

`content` is that of results.json (cli/read_long.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_qwen3.pages import page, pictures
from megatron_qwen3.pages.pictures import HUES, Picture
from megatron_qwen3.shown import counted, plain
from megatron_qwen3.tables import console, table

Content = Mapping[str, Any]
_DEPTHS = 4  # parts of a text in the table
COLUMNS = (
    "last quarter, nats: mean loss of the tokens in the last quarter of the texts. change %: that "
    "against the same way's at the trained length.",
    "keys %: pass keys that were found. in 1st to 4th quarter %: of those, by where in the text "
    "the key stood, its beginning first.",
)


def tell(content: Content) -> None:
    """Print the table."""
    title = f"Reading beyond {content['trained']:,} positions"
    screen = console()
    screen.print(table(_rows(content), title, ("way",)))
    for line in (*COLUMNS, *_notes(content)):
        screen.print(plain(line))


def write(content: Content, out: Path) -> None:
    """A page that needs no other file, its pictures as PNG in the folder of the same name."""
    with pictures.style():
        drawn = [_losses(content), _keys(content)]
    longest = max(row["length"] for row in content["rows"])
    found = {row["way"]: row["keys"] for row in content["rows"] if row["length"] == longest}
    tiles = [(f"{100 * share:.0f} %", f"of keys in {longest:,}, {w}") for w, share in found.items()]
    settings = [(way, _settings(rope)) for way, rope in content["ways"].items()]
    sections = [
        page.numbers(tiles),
        page.FIGURES,
        page.table("Loss and keys", _rows(content)),
        page.text("Meaning of the columns", (*COLUMNS, *_notes(content))),
        page.files("Settings of each way", settings),
    ]
    read = counted(content["texts"], "text")
    texts = f"{content['model']}, trained at {content['trained']:,}; {read}"
    page.write(out, "Reading beyond the trained length", texts, sections, drawn)


def _rows(content: Content) -> list[list[str]]:
    """Of each way and length the loss of the last quarter, in nats and against that at the
    trained length, and the share of keys that were found, by where they stood."""
    parts = [f"in {place} quarter %" for place in ("1st", "2nd", "3rd", "4th")]
    lines = [["way", "length", "last quarter, nats", "change %", "keys %", *parts]]
    trained = {r["way"]: r["last_quarter"] for r in content["rows"] if _is_trained(r, content)}
    for row in content["rows"]:
        base = trained.get(row["way"])
        change = f"{100 * (row['last_quarter'] / base - 1):+.1f}" if base else "–"
        cells = [row["way"], f"{row['length']:,}", f"{row['last_quarter']:.4f}", change]
        lines.append([*cells, f"{100 * row['keys']:.1f}", *_by_depth(row["found"])])
    return lines


def _is_trained(row: Mapping[str, Any], content: Content) -> bool:
    return bool(row["length"] == content["trained"])


def _by_depth(found: Sequence[tuple[float, bool]]) -> list[str]:
    cells = []
    for part in range(_DEPTHS):
        mine = [hit for depth, hit in found if int(depth * _DEPTHS) == part]
        cells.append(f"{100 * sum(mine) / len(mine):.0f}" if mine else "–")
    return cells


def _notes(content: Content) -> list[str]:
    """Ways that read with the same settings, so alike."""
    ways = list(content["ways"].items())
    return [
        f"{way} has the settings of {other}: no length exceeds their reach."
        for number, (way, rope) in enumerate(ways)
        for other, others in ways[:number]
        if rope == others
    ]


def _settings(rope: Mapping[str, Any]) -> str:
    return "\n".join(f"rope.{name} = {value}" for name, value in rope.items())


def _losses(content: Content) -> Picture:
    """The loss of each way over the positions of the longest texts."""
    longest = max(row["length"] for row in content["rows"])
    axes = pictures.axes("position in the text", "loss, nats", is_wide=True)
    for number, row in enumerate(r for r in content["rows"] if r["length"] == longest):
        bins = len(row["nats"])
        places = [(n + 0.5) * longest / bins for n in range(bins)]
        axes.plot(places, row["nats"], color=HUES[number], label=row["way"])
    axes.axvline(content["trained"], color=pictures.MUTED, linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False)
    caption = f"means of {counted(content['texts'], 'text')}; dotted: the trained length"
    return pictures.finish(axes, "loss", "Loss by position", caption, is_wide=True)


def _keys(content: Content) -> Picture:
    axes = pictures.axes("length of the text", "keys found, %")
    ways = list(dict.fromkeys(row["way"] for row in content["rows"]))
    lengths = sorted({row["length"] for row in content["rows"]})
    for number, way in enumerate(ways):
        shares = [100 * row["keys"] for row in content["rows"] if row["way"] == way]
        # Lines that are equal hide one another: those below are the wider ones.
        size = len(ways) - number
        axes.plot(
            range(len(lengths)),
            shares,
            marker="o",
            markersize=2.5 + 1.5 * size,
            linewidth=0.8 * size,
            color=HUES[number],
            label=way,
        )
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_ylim(-5, 106)
    axes.legend(frameon=False)
    return pictures.finish(axes, "keys", "Pass keys", "at even depths of each text", is_wide=False)
