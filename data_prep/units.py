"""Splits text into hashed units, in which repetition, near-duplicates and contamination are
counted.

A unit is a word in lower case (letters, digits and marks between anything else), or a single
character in scripts written without spaces (Han, kana, Thai, Lao, Khmer, Burmese, Tibetan). So the
same rules hold in 119 languages without a word tokenizer for each, and punctuation, case, spacing
and the tokenizer play no part in whether two passages are the same.

    units = split("Der Fluss, der Fluß")   # 4 units: their hashes, starts and ends
    shingles(units.hashes, 5)              # one hash for each run of five units
"""

import sys
import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

# Blocks of the scripts that separate no words by spaces (Unicode 15, Blocks.txt).
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x19E0, 0x19FF),  # Khmer symbols
    (0x2E80, 0x312F),  # CJK radicals and punctuation, kana, bopomofo
    (0x31A0, 0x9FFF),  # bopomofo, kana and CJK extensions, unified ideographs
    (0xA9E0, 0xA9FF),  # Myanmar extended
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),  # CJK compatibility ideographs
    (0xFF66, 0xFF9F),  # halfwidth kana
    (0x1B000, 0x1B16F),  # kana supplements
    (0x20000, 0x323AF),  # CJK extensions B to H
)
_SEPARATOR, _IN_WORD, _ALONE = range(3)
RUN_FACTOR = np.uint64(
    0x9E3779B97F4A7C15
)  # odd, so multiplying loses nothing; 2**64 / golden ratio
_PIECE = 1 << 20  # characters; a word that lies across such a place is two
_LONGEST = 64  # characters after which the weights of a word's characters repeat


@dataclass(frozen=True)
class Units:
    """hashes uint64 [U]; starts, ends int64 [U]: characters of the text; alone bool [U]: units
    of scripts without spaces; lowered: the text in lower case."""

    hashes: Hashes
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    alone: npt.NDArray[np.bool_]
    lowered: str

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def without_spaces(self) -> bool:
        """Whether most units are single characters: runs of them say less than runs of words."""
        return bool(2 * np.count_nonzero(self.alone) > len(self.alone))


def split(text: str) -> Units:
    """The units of a text, at a memory of some 50 bytes for each of up to a million characters.

    Lowering may change a text's length by a few characters (`İ`).
    """
    if len(text) <= _PIECE:
        return _split(text)
    pieces = [
        (start, _split(text[start : start + _PIECE])) for start in range(0, len(text), _PIECE)
    ]
    return Units(
        np.concatenate([units.hashes for _, units in pieces]),
        np.concatenate([units.starts + start for start, units in pieces]),
        np.concatenate([units.ends + start for start, units in pieces]),
        np.concatenate([units.alone for _, units in pieces]),
        "".join(units.lowered for _, units in pieces),
    )


def _split(text: str) -> Units:
    lowered = text.lower()
    points = np.frombuffer(lowered.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds().take(points, mode="clip")  # clip: their bounds are not checked
    in_unit = kinds != _SEPARATOR
    between = np.zeros(len(points) + 2, np.bool_)
    between[1:-1] = in_unit
    edges = between[1:] != between[:-1]  # whether a unit begins or ends before a character
    begins, ends = edges[:-1] & in_unit, edges[1:] & in_unit
    if (alone := kinds == _ALONE).any():
        begins |= alone
        ends |= alone
        begins[1:] |= alone[:-1] & in_unit[1:]
        ends[:-1] |= alone[1:] & in_unit[:-1]
    starts = np.flatnonzero(begins)
    finishes = np.flatnonzero(ends) + 1
    hashes = _hashes(points[in_unit], starts, finishes)
    return Units(hashes, starts, finishes, alone[starts], lowered)


def shingles(hashes: Hashes, size: int) -> Hashes:
    """Hashes of each run of `size` units [max(1, U - size + 1)]; a shorter text is one run.

    Every bit of a result depends on all the units and their order.
    """
    size = min(size, len(hashes))
    if size == 0:
        return np.zeros(0, np.uint64)
    count = len(hashes) - size + 1
    runs = hashes[:count].copy()
    for offset in range(1, size):
        runs *= RUN_FACTOR
        runs += hashes[offset : offset + count]
    return mix(runs)


def mix(values: Hashes) -> Hashes:
    """A bijection after which all bits depend on all bits (splitmix64; Steele et al. 2014)."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _hashes(
    points: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> Hashes:
    """Per unit: the sum of its characters, each weighted by its place in the unit.

    points: of the characters within units.
    """
    if not len(starts):
        return np.zeros(0, np.uint64)
    lengths = ends - starts
    past = lengths.cumsum()
    place = np.ones(len(points), np.int64)  # by how much it is greater than that of the one before
    place[0] = 0
    place[past[:-1]] = 1 - lengths[:-1]
    place.cumsum(out=place)
    if int(lengths.max()) > _LONGEST:
        place &= _LONGEST - 1
    terms = _weights().take(place, mode="clip")
    terms *= points
    sums = terms.cumsum().take(past - 1)  # modulo 2**64, as their differences are
    sums[1:] -= sums[:-1].copy()
    return mix(sums)


@cache
def _weights() -> Hashes:
    return mix(np.arange(1, _LONGEST + 1, dtype=np.uint64) * RUN_FACTOR) | np.uint64(1)


@cache
def _kinds() -> npt.NDArray[np.uint8]:
    """The kind of each code point, [0x110000]."""

    kinds = np.zeros(sys.maxunicode + 1, np.uint8)
    for point in range(0x20000):  # no letters with spaces between words lie beyond
        if unicodedata.category(chr(point))[0] in "LNM":
            kinds[point] = _IN_WORD
    for first, last in _WITHOUT_SPACES:
        block = kinds[first : last + 1]
        block[:] = np.where((block == _IN_WORD) | (first >= 0x20000), _ALONE, _SEPARATOR)
    return kinds
