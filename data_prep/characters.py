"""Counts the kinds of characters of a text, in one pass over its code points.

counts = count("It rains (often); 1 day in 3.")
counts.letters, counts.blanks, counts.signs, counts.sentences     # 19, 7, 5, 1
"""

import re
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep import scripts

SENTENCE_MARKS = ".!?…。！？｡।॥۔؟։።៕။།"
_SIGN = re.compile(r"[:;()（）：；\d]")
# As in quality.py: "e.g." and "i.e." stand for a sign too, and have no character of one.
_FOR_EXAMPLE = re.compile(r"\b(?:e\.g|i\.e)\.")
_OTHER, _LETTER, _BLANK, _A_SIGN, _MARK = range(5)


class Counts(NamedTuple):
    """letters: and the marks that belong to them, of any script; blanks: spaces, line ends, tabs;
    signs: of exposition, as figures, colons and brackets are; sentences: runs of marks that end
    one."""

    letters: int
    blanks: int
    signs: int
    sentences: int


def count(text: str) -> Counts:
    """Count the characters of a text by kind."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kind_of_point().take(points, mode="clip")  # clip: their bounds are not checked
    letters, blanks, signs = (
        int(np.count_nonzero(kinds == kind)) for kind in (_LETTER, _BLANK, _A_SIGN)
    )
    ends = kinds == _MARK
    sentences = int(np.count_nonzero(ends)) - int(np.count_nonzero(ends[1:] & ends[:-1]))
    if "e.g." in text or "i.e." in text:
        signs += len(_FOR_EXAMPLE.findall(text))
    return Counts(letters, blanks, signs, sentences)


@cache
def _kind_of_point() -> npt.NDArray[np.uint8]:
    """The kind of each code point [0x110000]."""
    kinds = np.where(scripts.is_letter(), _LETTER, _OTHER).astype(np.uint8)
    every = "".join(map(chr, range(len(kinds))))
    kinds[[ord(blank) for blank in " \n\t"]] = _BLANK
    kinds[[match.start() for match in _SIGN.finditer(every)]] = _A_SIGN
    kinds[[ord(mark) for mark in SENTENCE_MARKS]] = _MARK
    return kinds
