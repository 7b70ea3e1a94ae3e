"""Makes text from outside safe to show: in a table, a log line, a bar, an error or a page.

    print(shown(label))                      # one line; control characters are written out
    print(f"error: {shown_lines(error)}")    # errors may list several faults
    print(as_json(results))                  # numbers that are not finite are null
    table.add_row(plain(label))              # for Rich, which would read [red] in it as markup

Labels, file names, paths and model outputs are written by strangers. A terminal obeys escape
sequences, Rich obeys brackets, and a newline forges a line of a log. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

# Controls, formats (right-to-left overrides among them), surrogates, line and paragraph separators.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # which words of several languages are spelled with


def shown(text: object) -> str:
    r"""str() of it as one line, with unsafe characters as \n, \x1b, \u202e or \udc80."""
    return "".join(_escaped(character) for character in str(text))


def shown_lines(text: object) -> str:
    """The lines of str() of it; all but the first are indented, so that they pass for no others."""

    return "\n  ".join(shown(line) for line in str(text).split("\n"))


def shown_text(text: object) -> str:
    """Text whose lines and tabs are its own, a model's or a file's, and otherwise `shown`."""
    return "".join(c if c in "\n\t" else _escaped(c) for c in str(text))


def as_json(content: Any) -> str:
    """JSON that every program reads: a number that is none, or is not finite, is null."""
    return json.dumps(_finite(content), indent=1, allow_nan=False)


def _finite(content: Any) -> Any:
    match content:
        case float():
            return content if math.isfinite(content) else None
        case dict():
            return {key: _finite(value) for key, value in content.items()}
        case list() | tuple():
            return [_finite(value) for value in content]
    return content


def counted(number: int, noun: str) -> str:
    """1 node, 1,024 nodes."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def plain(text: object, style: str = "") -> Text:
    """`shown`, as text that Rich prints as it stands, in one of Rich's styles."""
    from rich.text import Text

    return Text(shown(text), style)


def _escaped(character: str) -> str:
    if unicodedata.category(character) in _UNSAFE and character not in _JOINERS:
        return character.encode("unicode_escape").decode("ascii")
    return character
