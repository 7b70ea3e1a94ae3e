"""Formats the lines of a curriculum's tables, in a terminal and on its page."""

from data_prep.mixing.summary import SummaryRow
from megatron_qwen3.training.console import count

OF_TEXTS = "length of texts"
HEADER = ["", "sources", "there are", "read", "share", "by size", "epochs", ""]


def cells(row: SummaryRow) -> list[str]:
    """One line under HEADER."""
    return [
        row.value,
        f"{row.sources:,}",
        count(row.available),
        count(row.tokens),
        _percent(row.share),
        _percent(row.natural),
        _short(row.epochs) if row.tokens else "",
        row.note,
    ]


def _percent(fraction: float) -> str:
    return f"{_short(100 * fraction)} %"


def _short(number: float) -> str:
    """Two significant digits, also of very little."""
    if not number:
        return "0"
    return f"{number:.{1 if number >= 9.95 else 2}f}" if number >= 0.095 else f"{number:.2g}"
