"""The rules of data_prep/quality.py, plainly written, at their default bounds, to compare it with.

    judged = judge(text, split(text), "deu_Latn")
    judged.fault                  # "repeated lines", the first rule that it breaks, or None
    judged.quality                # 0 to 1: how far it is from breaking any

The rules are those of Gopher (Rae et al. 2021, appendix A.1.1: quality and repetition) and FineWeb
(Penedo et al. 2024, section 3.6), counted in units (units.py). So they hold where words are not
separated by spaces; twice as many characters stand for as many words there. A word's usual length
is the language's (languages.csv). Rules about how lines end hold where sentences end in a mark.

`education` orders the documents of a language by signs of exposition: varied words, long ones,
sentences of moderate length, figures, and the punctuation of definitions and asides. It does
not judge content; for that give a fastText model. Both scores are comparable within a
language, hardly between languages.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep import scripts
from data_prep.languages import LANGUAGES
from data_prep.units import Units, shingles

_NO_SENTENCE_MARKS = frozenset({"tha_Thai", "lao_Laoo"})
_SENTENCE_END = re.compile(r"[.!?…。！？｡।॥۔؟։።៕။།]+[\"'”’»)\]」』）]*")
_SENTENCE_MARK = re.compile(r"[.!?…。！？｡।॥۔؟։።៕။།]")
_BULLET = re.compile(r"\s*(?:[•●○▪■‣∙·*+–—-]|\d{1,3}[.)])\s")
_GENERATED = re.compile(r"(?i)auto-?generated|generated (?:by|from)|do not edit")
_EXPOSITION = re.compile(r"[:;()（）：；\d]|\b(?:e\.g|i\.e)\.")
_ANY = float("inf")
_FEWEST_LETTERS = 240  # 50 English words, the least in Gopher, have as many
_DENSE_SCRIPTS = frozenset({"Hans", "Hant", "Jpan", "Hang"})  # whose letters are syllables or more
_USUAL_LETTERS = 5.0  # per word, in languages that are not in the table


class Rule(NamedTuple):
    """A document's value must lie in [low, high]; the name is the reason for dropping it."""

    name: str
    value: float
    low: float
    high: float

    @property
    def margin(self) -> float:
        """0 at a bound or beyond, 1 where the value is as far from it as it can sensibly be."""
        above = (self.value - self.low) / self.low if self.low else 1.0
        below = (self.high - self.value) / self.high if self.high < _ANY else 1.0
        return max(0.0, min(1.0, above, below))


@dataclass(frozen=True)
class Judged:
    """fault: the first rule broken, or None; quality, education: 0 to 1, 0 where one is broken."""

    fault: str | None
    quality: float
    education: float


def judge(text: str, units: Units, language: str) -> Judged:
    """A document of prose, by the rules for its language (`und` has general ones)."""
    fault, quality = _follow(_prose(text, units, language))
    return Judged(fault, quality, 0.0 if fault else _education(text, units, language))


def judge_code(text: str, units: Units) -> Judged:
    """A file of source code (as in StarCoder: Li et al. 2023, section 3.1)."""
    fault, quality = _follow(_code(text, units))
    return Judged(fault, quality, 0.0 if fault else _code_education(text, units))


def _follow(rules: Iterator[Rule]) -> tuple[str | None, float]:
    """The first rule broken, or how far the text is from breaking one: half the mean of the
    margins and half the least."""
    margins = []
    for rule in rules:
        if not rule.low <= rule.value <= rule.high:
            return rule.name, 0.0
        margins.append(rule.margin)
    return None, round((sum(margins) / len(margins) + min(margins)) / 2, 3)


def _prose(text: str, units: Units, language: str) -> Iterator[Rule]:
    scale = 2 if units.without_spaces else 1
    visible = max(1, len(text) - sum(map(text.count, " \n\t")))
    lines = [line.strip() for line in text.split("\n") if line.strip()] or [""]
    known = LANGUAGES.get(language)
    usual = (known.letters_per_word if known else None) or _USUAL_LETTERS
    letters = scripts.count_letters(text)
    yield Rule("few letters", letters / visible, 0.6, _ANY)
    dense = known is not None and known.script in _DENSE_SCRIPTS
    yield Rule("too short", letters, _FEWEST_LETTERS / (2 if dense else 1), _ANY)
    if not units.without_spaces:
        length = float((units.ends - units.starts).mean()) if len(units) else 0.0
        yield Rule("odd word lengths", length, usual / 2, 2 * usual)
    symbols = text.count("#") + text.count("…") + text.count("...")
    yield Rule("symbols", symbols * scale / max(1, len(units)), 0, 0.1)
    yield Rule("bullet points", _share(bool(_BULLET.match(f"{line} ")) for line in lines), 0, 0.9)
    yield Rule("cut off", _share(line.endswith(("…", "...")) for line in lines), 0, 0.3)
    yield Rule("short lines", _share(len(line) * scale < 30 for line in lines), 0, 0.67)
    if language not in _NO_SENTENCE_MARKS:
        ending = _share(bool(_SENTENCE_END.search(line[-4:])) for line in lines)
        yield Rule("no sentences", ending, 0.12, _ANY)
    yield Rule("placeholder", float("lorem ipsum" in text.lower()), 0, 0.5)
    yield from _repetition(lines, units, scale)


def _repetition(lines: list[str], units: Units, scale: int) -> Iterator[Rule]:
    """Gopher's table A1: the shares of a text that repeat."""
    again: list[str] = []
    seen: set[str] = set()
    for line in lines:
        (again.append if line in seen else seen.add)(line)
    yield Rule("repeated lines", len(again) / len(lines), 0, 0.3)
    yield Rule("repeated lines", sum(map(len, again)) / max(1, sum(map(len, lines))), 0, 0.2)
    letters = units.ends - units.starts
    for size, most in ((2, 0.20), (3, 0.18), (4, 0.16)):
        yield Rule("one phrase", _top_share(units, letters, size * scale), 0, most)
    repeated = _repeated_share(units, letters, 5 * scale)
    yield Rule("repeated phrases", repeated, 0, 0.15)
    if repeated > 0.10:  # longer runs that repeat lie within shorter ones that do
        for size, most in zip(range(6, 11), (0.14, 0.13, 0.12, 0.11, 0.10), strict=True):
            share = _repeated_share(units, letters, size * scale)
            yield Rule("repeated phrases", share, 0, most)


def _top_share(units: Units, letters: npt.NDArray[np.int64], size: int) -> float:
    """The share of letters that lies in the most frequent run of `size` units."""
    if len(units) <= size:
        return 0.0
    runs = shingles(units.hashes, size)
    ordered = np.sort(runs)
    begins = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    counts = np.diff(begins, append=len(ordered))
    top = int(counts.argmax())
    if counts[top] < 2:
        return 0.0
    at = int((runs == ordered[begins[top]]).argmax())
    return min(1.0, float(counts[top] * letters[at : at + size].sum() / letters.sum()))


def _repeated_share(units: Units, letters: npt.NDArray[np.int64], size: int) -> float:
    """The share of letters in runs of `size` units that stood in the text before."""
    if len(units) <= size:
        return 0.0
    runs = shingles(units.hashes, size)
    ordered = np.sort(runs)
    if (ordered[1:] != ordered[:-1]).all():
        return 0.0
    again = np.ones(len(runs), np.int64)
    again[np.unique(runs, return_index=True)[1]] = 0
    covered = np.convolve(again, np.ones(size, np.int64)) > 0
    return float(letters[covered].sum() / letters.sum())


def _education(text: str, units: Units, language: str) -> float:
    if len(units) == 0:
        return 0.0
    known = LANGUAGES.get(language)
    usual = (known.letters_per_word if known else None) or _USUAL_LETTERS
    head = units.hashes[:1000]
    variety: float = len(np.unique(head)) / len(head) ** 0.85  # Heaps' law
    long_words = float((units.ends - units.starts > 1.5 * usual).mean()) / 0.25
    sentences = max(1, len(_SENTENCE_END.findall(text)))
    length = len(units) / sentences / (2 if units.without_spaces else 1)
    moderate = min(length / 15, 1.0) * min(1.0, 40 / length)
    exposition = len(_EXPOSITION.findall(text)) / len(units) / 0.1
    signs = [min(1.0, variety)] + [min(1.0, sign) for sign in (moderate, exposition)]
    if not units.without_spaces:
        signs.append(min(1.0, long_words))
    return round(sum(signs) / len(signs), 3)


def _code(text: str, units: Units) -> Iterator[Rule]:
    lines = text.split("\n")
    characters = max(1, len(text))
    longest, letters = max(map(len, lines)), scripts.count_letters(text)
    filled = [line for line in lines if line.strip()]
    yield Rule("too short", len(units), 10, _ANY)
    yield Rule("long lines", longest, 0, 1000)
    yield Rule("long lines", len(text) / len(lines), 0, 100)
    yield Rule("few letters", letters / characters, 0.25, _ANY)
    yield Rule("generated", float(bool(_GENERATED.search("\n".join(lines[:5])))), 0, 0.5)
    distinct = len(set(filled)) / max(1, len(filled))
    yield Rule("repeated lines", distinct, 0.2, _ANY)


def _code_education(text: str, units: Units) -> float:
    """The share of lines with comments or documentation, up to a third; and varied names."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    comments = _share(line.startswith(("#", "//", "/*", "*", "--", '"""', "'''")) for line in lines)
    head = units.hashes[:1000]
    variety: float = len(np.unique(head)) / max(1, len(head)) ** 0.75
    return round((min(1.0, 3 * comments) + min(1.0, variety)) / 2, 3)


def _share(flags: Iterator[bool]) -> float:
    found = list(flags)
    return sum(found) / max(1, len(found))
