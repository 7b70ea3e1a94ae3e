"""Prints tables in a terminal or a log: one look, and cells that are shown as they stand.

    sizes = table([["language", "MB"], ["deu_Latn", "1.20"]], title="Sizes")
    sizes.rows[0].style = "bold"      # a row may stand out, or end a section
    console().print(sizes)

Labels, names and paths are written by strangers: every cell is `plain`. Nothing here imports torch.
"""

import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_qwen3.shown import plain

FILE_WIDTH = 150  # columns, of output that goes into a file or pipe
_NAME_WIDTH = 8  # of a column of numbers; a longer name takes several lines


def console() -> Console:
    """Standard output, as wide as its terminal, or in a file as tables of many columns need."""
    return Console(width=None if sys.stdout.isatty() else FILE_WIDTH, highlight=False)


def table(rows: Iterable[Sequence[str]], title: str = "", words: Collection[str] = ()) -> Table:
    """A table whose first row has the names of the columns.

    words: columns of words, which fold where there is no room; if none is named, the first. All
    others have numbers: on the right, and in one line, for a cut number is a wrong one.
    """
    header, *lines = rows
    words = words or header[:1]
    made = Table(
        title=plain(title) if title else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in header:
        if name in words:
            made.add_column(plain(name), overflow="fold")
        else:
            made.add_column(_name(name), justify="right", no_wrap=True)
    for line in lines:
        made.add_row(*map(plain, line))
    return made


def _name(name: str) -> Text:
    first, *rest = textwrap.wrap(name, _NAME_WIDTH, break_long_words=False) or [""]
    text = plain(first)
    for line in rest:
        text.append("\n").append_text(plain(line))
    return text
