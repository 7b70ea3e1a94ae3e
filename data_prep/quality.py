"""Judges whether a document reads like text somebody wrote: rules per language, two heuristics.

    judged = judge(text, split(text), "deu_Latn")
    judged.fault                  # "repeated lines", the first rule that it breaks, or None
    judged.quality                # 0 to 1: how far it is from breaking any

The rules are those of Gopher (Rae et al. 2021, appendix A.1.1: quality and repetition) and FineWeb
(Penedo et al. 2024, section 3.6), counted in units (units.py). So they hold where words are not
separated by spaces; twice as many characters stand for as many words there. A word's usual length
is the language's (languages.csv). Bounds are data (bounds.py).

`education` orders the documents of a language by signs of exposition: varied words, long ones,
sentences of moderate length, figures, and the punctuation of definitions and asides. It does not
judge content, which takes a classifier. Both scores are heuristics that nobody held
against people's judgement, comparable within a language, hardly between languages.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from data_prep import scripts
from data_prep.bounds import CodeBounds, ProseBounds, QualityBounds
from data_prep.characters import SENTENCE_MARKS, Counts, count
from data_prep.languages import LANGUAGES
from data_prep.repeats import Repeats
from data_prep.units import Hashes, Units

_BULLET = re.compile(r"\s*(?:[•●○▪■‣∙·*+–—-]|\d{1,3}[.)])\s")
_BEGINS_BULLET = frozenset("•●○▪■‣∙·*+–—-")  # or a digit
_MARKS = frozenset(SENTENCE_MARKS)
_GENERATED = re.compile(r"(?i)auto-?generated|generated (?:by|from)|do not edit")
_ANY = float("inf")
_REPEATS = 0.10  # share in runs of 5 units that repeat, below which longer runs are not looked at
_USUAL_LETTERS = 5.0  # per word, in languages that are not in the table


class Rule(NamedTuple):
    """A document's value must lie in [low, high]; the name is the reason for dropping it."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class JudgedText:
    """fault: the first rule broken, or None; quality, education: 0 to 1, 0 where one is broken."""

    fault: str | None
    quality: float
    education: float


def judge(text: str, units: Units, language: str, bounds: ProseBounds | None = None) -> JudgedText:
    """A document of prose, by the rules for its language (`und` has general ones)."""
    bounds = bounds or _bounds().of(language)
    known = LANGUAGES.get(language)
    usual = (known.letters_per_word if known else None) or _USUAL_LETTERS
    counts = count(text)
    fault, quality = _follow(_prose(text, units, usual, bounds, counts))
    return JudgedText(fault, quality, 0.0 if fault else _education(units, usual, counts))


def judge_code(text: str, units: Units, bounds: CodeBounds | None = None) -> JudgedText:
    """A file of source code (as in StarCoder: Li et al. 2023, section 3.1)."""
    fault, quality = _follow(_code(text, units, bounds or _bounds().code))
    return JudgedText(fault, quality, 0.0 if fault else _code_education(text, units))


@cache
def _bounds() -> QualityBounds:
    return QualityBounds()


def _follow(rules: Iterator[Rule]) -> tuple[str | None, float]:
    """The first rule broken, or how far the text is from breaking one: half the mean of the
    margins and half the least.

    A margin is 0 at a bound, and 1 where the value is as far from it as it can sensibly be.
    """
    margins = []
    for name, value, low, high in rules:
        if not low <= value <= high:
            return name, 0.0
        if low > 0 or high < _ANY:  # others have no bound
            above = (value - low) / low if low else 1.0
            below = (high - value) / high if 0 < high < _ANY else 1.0
            margins.append(max(0.0, min(1.0, above, below)))
    if not margins:
        return None, 1.0
    return None, round((sum(margins) / len(margins) + min(margins)) / 2, 3)


def _prose(
    text: str, units: Units, usual: float, bounds: ProseBounds, counts: Counts
) -> Iterator[Rule]:
    scale = 2 if units.without_spaces else 1
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())] or [""]
    visible = max(1, len(text) - counts.blanks)
    yield Rule("few letters", counts.letters / visible, bounds.min_letter_share, _ANY)
    yield Rule("too short", counts.letters, bounds.min_letters, _ANY)
    if bounds.word_length_factor and scale == 1:
        letters = int(units.ends.sum()) - int(units.starts.sum())
        length, factor = letters / max(1, len(units)), bounds.word_length_factor
        yield Rule("odd word lengths", length, usual / factor, factor * usual)
    symbols = text.count("#") + text.count("…") + text.count("...")
    yield Rule("symbols", symbols * scale / max(1, len(units)), 0, bounds.max_symbols)
    bullets = sum(map(_is_bullet, lines)) / len(lines)
    yield Rule("bullet points", bullets, 0, bounds.max_bullets)
    cut_off = sum(line.endswith(("…", "...")) for line in lines) / len(lines)
    yield Rule("cut off", cut_off, 0, bounds.max_cut_off)
    short = sum(len(line) * scale < bounds.short_line for line in lines) / len(lines)
    yield Rule("short lines", short, 0, bounds.max_short_lines)
    if bounds.min_sentences:
        ending = sum(not _MARKS.isdisjoint(line[-4:]) for line in lines) / len(lines)
        yield Rule("no sentences", ending, bounds.min_sentences, _ANY)
    if bounds.placeholders:
        found = any(phrase.lower() in units.lowered for phrase in bounds.placeholders)
        yield Rule("placeholder", float(found), 0, 0.5)
    yield from _repetition(lines, units, scale, bounds)


def _is_bullet(line: str) -> bool:
    """Whether a line that begins with no blank is a bullet point."""
    begins = line[:1] in _BEGINS_BULLET or line[:1].isdecimal()
    return begins and bool(_BULLET.match(f"{line} "))


def _repetition(lines: list[str], units: Units, scale: int, bounds: ProseBounds) -> Iterator[Rule]:
    """Gopher's table A1: the shares of a text that repeat."""
    again: list[str] = []
    if len(set(lines)) < len(lines):
        seen: set[str] = set()
        for line in lines:
            (again.append if line in seen else seen.add)(line)
    yield Rule("repeated lines", len(again) / len(lines), 0, bounds.max_repeated_lines)
    share = sum(map(len, again)) / max(1, sum(map(len, lines)))
    yield Rule("repeated lines", share, 0, bounds.max_repeated_letters)
    repeats = Repeats(units)
    of_phrases = (bounds.max_2_unit_phrase, bounds.max_3_unit_phrase, bounds.max_4_unit_phrase)
    for size, most in enumerate(of_phrases, 2):
        yield Rule("one phrase", repeats.top_share(size * scale), 0, most)
    repeated = repeats.share(5 * scale)
    yield Rule("repeated phrases", repeated, 0, bounds.max_repeats_of_5)
    if repeated > _REPEATS:  # longer runs that repeat lie within shorter ones that do
        for size in range(6, 11):
            most = getattr(bounds, f"max_repeats_of_{size}")
            yield Rule("repeated phrases", repeats.share(size * scale), 0, most)


def _education(units: Units, usual: float, counts: Counts) -> float:
    if len(units) == 0:
        return 0.0
    head = units.hashes[:1000]
    variety: float = _distinct(head) / len(head) ** 0.85  # Heaps' law
    length = len(units) / max(1, counts.sentences) / (2 if units.without_spaces else 1)
    moderate = min(length / 15, 1.0) * min(1.0, 40 / length)
    exposition = counts.signs / len(units) / 0.1
    signs = [min(1.0, variety)] + [min(1.0, sign) for sign in (moderate, exposition)]
    if not units.without_spaces:
        long_words = np.count_nonzero(units.ends - units.starts > 1.5 * usual)
        signs.append(min(1.0, int(long_words) / len(units) / 0.25))
    return round(sum(signs) / len(signs), 3)


def _distinct(hashes: Hashes) -> int:
    """Number of different ones."""
    ordered = np.sort(hashes)
    return min(1, len(hashes)) + int(np.count_nonzero(ordered[1:] != ordered[:-1]))


def _code(text: str, units: Units, bounds: CodeBounds) -> Iterator[Rule]:
    lines = text.split("\n")
    characters = max(1, len(text))
    longest, letters = max(map(len, lines)), scripts.count_letters(text)
    filled = [line for line in lines if line.strip()]
    yield Rule("too short", len(units), bounds.min_units, _ANY)
    yield Rule("long lines", longest, 0, bounds.max_line)
    yield Rule("long lines", len(text) / len(lines), 0, bounds.max_mean_line)
    yield Rule("few letters", letters / characters, bounds.min_letter_share, _ANY)
    if bounds.drop_generated:
        yield Rule("generated", float(bool(_GENERATED.search("\n".join(lines[:5])))), 0, 0.5)
    distinct = len(set(filled)) / max(1, len(filled))
    yield Rule("repeated lines", distinct, bounds.min_distinct_lines, _ANY)


def _code_education(text: str, units: Units) -> float:
    """The share of lines with comments or documentation, up to a third; and varied names."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    comments = _share(line.startswith(("#", "//", "/*", "*", "--", '"""', "'''")) for line in lines)
    head = units.hashes[:1000]
    variety: float = _distinct(head) / max(1, len(head)) ** 0.75
    return round((min(1.0, 3 * comments) + min(1.0, variety)) / 2, 3)


def _share(flags: Iterator[bool]) -> float:
    found = list(flags)
    return sum(found) / max(1, len(found))
