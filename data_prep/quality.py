"""Whether a document reads like text somebody wrote: rules per language, for code, and two scores.

    judged = judge(text, split(text), "deu_Latn")
    judged.fault                  # "repeated lines", the first rule that it breaks, or None
    judged.quality                # 0 to 1: how far it is from breaking any

The rules are those of Gopher (Rae et al. 2021, appendix A.1.1: quality and repetition) and FineWeb
(Penedo et al. 2024, section 3.6), counted in units (units.py). So they hold where words are not
separated by spaces; twice as many characters stand for as many words there. A word's usual length
is the language's (languages.csv). Rules about how lines end hold where sentences end in a mark.

`education` orders the documents of a language by signs of exposition: varied words, long ones,
sentences of moderate length, figures, and the punctuation of definitions and asides. It knows
nothing of what a text says; for that give a fastText model. Both scores are comparable within a
language, hardly between languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep import scripts
from data_prep.bounds import CodeBounds, ProseBounds, QualityBounds
from data_prep.languages import LANGUAGES
from data_prep.units import Units, shingles

_SENTENCE_END = re.compile(r"[.!?…。！？｡।॥۔؟։።៕။།]+[\"'”’»)\]」』）]*")
_BULLET = re.compile(r"\s*(?:[•●○▪■‣∙·*+–—-]|\d{1,3}[.)])\s")
_GENERATED = re.compile(r"(?i)auto-?generated|generated (?:by|from)|do not edit")
_EXPOSITION = re.compile(r"[:;()（）：；\d]|\b(?:e\.g|i\.e)\.")
_ANY = float("inf")
_REPEATS = 0.10  # share in runs of 5 units that repeat, below which longer runs are not looked at
_USUAL_LETTERS = 5.0  # per word, in languages that are not in the table


class Rule(NamedTuple):
    """A document's value must lie in [low, high]; the name is the reason for dropping it."""

    name: str
    value: float
    low: float
    high: float

    @property
    def is_set(self) -> bool:
        """Whether there is a value that breaks it."""
        return self.low > 0 or self.high < _ANY

    @property
    def margin(self) -> float:
        """0 at a bound or beyond, 1 where the value is as far from it as it can sensibly be."""
        above = (self.value - self.low) / self.low if self.low else 1.0
        below = (self.high - self.value) / self.high if 0 < self.high < _ANY else 1.0
        return max(0.0, min(1.0, above, below))


@dataclass(frozen=True)
class Judged:
    """fault: the first rule broken, or None; quality, education: 0 to 1, 0 where one is broken."""

    fault: str | None
    quality: float
    education: float


def judge(text: str, units: Units, language: str, bounds: ProseBounds | None = None) -> Judged:
    """A document of prose, by the rules for its language (`und` has general ones)."""
    bounds = bounds or _bounds().of(language)
    fault, quality = _follow(_prose(text, units, language, bounds))
    return Judged(fault, quality, 0.0 if fault else _education(text, units, language))


def judge_code(text: str, units: Units, bounds: CodeBounds | None = None) -> Judged:
    """A file of source code (as in StarCoder: Li et al. 2023, section 3.1)."""
    fault, quality = _follow(_code(text, units, bounds or _bounds().code))
    return Judged(fault, quality, 0.0 if fault else _code_education(text, units))


@cache
def _bounds() -> QualityBounds:
    return QualityBounds()


def _follow(rules: Iterator[Rule]) -> tuple[str | None, float]:
    """The first rule broken, or how far the text is from breaking one: half the mean of the
    margins and half the least."""
    margins = []
    for rule in filter(lambda rule: rule.is_set, rules):
        if not rule.low <= rule.value <= rule.high:
            return rule.name, 0.0
        margins.append(rule.margin)
    if not margins:
        return None, 1.0
    return None, round((sum(margins) / len(margins) + min(margins)) / 2, 3)


def _prose(text: str, units: Units, language: str, bounds: ProseBounds) -> Iterator[Rule]:
    scale = 2 if units.without_spaces else 1
    visible = max(1, len(text) - sum(map(text.count, " \n\t")))
    lines = [line.strip() for line in text.split("\n") if line.strip()] or [""]
    letters = scripts.count_letters(text)
    yield Rule("few letters", letters / visible, bounds.min_letter_share, _ANY)
    yield Rule("too short", letters, bounds.min_letters, _ANY)
    if bounds.word_length_factor and not units.without_spaces:
        length = float((units.ends - units.starts).mean()) if len(units) else 0.0
        usual, factor = _usual_letters(language), bounds.word_length_factor
        yield Rule("odd word lengths", length, usual / factor, factor * usual)
    symbols = text.count("#") + text.count("…") + text.count("...")
    yield Rule("symbols", symbols * scale / max(1, len(units)), 0, bounds.max_symbols)
    bullets = _share(bool(_BULLET.match(f"{line} ")) for line in lines)
    yield Rule("bullet points", bullets, 0, bounds.max_bullets)
    cut_off = _share(line.endswith(("…", "...")) for line in lines)
    yield Rule("cut off", cut_off, 0, bounds.max_cut_off)
    short = _share(len(line) * scale < bounds.short_line for line in lines)
    yield Rule("short lines", short, 0, bounds.max_short_lines)
    if bounds.min_sentences:
        ending = _share(bool(_SENTENCE_END.search(line[-4:])) for line in lines)
        yield Rule("no sentences", ending, bounds.min_sentences, _ANY)
    if bounds.placeholders:
        lowered = text.lower()
        found = any(phrase in lowered for phrase in bounds.placeholders)
        yield Rule("placeholder", float(found), 0, 0.5)
    yield from _repetition(lines, units, scale, bounds)


def _usual_letters(language: str) -> float:
    known = LANGUAGES.get(language)
    return (known.letters_per_word if known else None) or _USUAL_LETTERS


def _repetition(lines: list[str], units: Units, scale: int, bounds: ProseBounds) -> Iterator[Rule]:
    """Gopher's table A1: what share of a text its own repetitions are."""
    again: list[str] = []
    seen: set[str] = set()
    for line in lines:
        (again.append if line in seen else seen.add)(line)
    yield Rule("repeated lines", len(again) / len(lines), 0, bounds.max_repeated_lines)
    share = sum(map(len, again)) / max(1, sum(map(len, lines)))
    yield Rule("repeated lines", share, 0, bounds.max_repeated_letters)
    letters = units.ends - units.starts
    of_phrases = (bounds.max_2_unit_phrase, bounds.max_3_unit_phrase, bounds.max_4_unit_phrase)
    for size, most in enumerate(of_phrases, 2):
        yield Rule("one phrase", _top_share(units, letters, size * scale), 0, most)
    repeated = _repeated_share(units, letters, 5 * scale)
    yield Rule("repeated phrases", repeated, 0, bounds.max_repeats_of_5)
    if repeated > _REPEATS:  # longer runs that repeat lie within shorter ones that do
        for size in range(6, 11):
            share = _repeated_share(units, letters, size * scale)
            yield Rule("repeated phrases", share, 0, getattr(bounds, f"max_repeats_of_{size}"))


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
    usual = _usual_letters(language)
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
    variety: float = len(np.unique(head)) / max(1, len(head)) ** 0.75
    return round((min(1.0, 3 * comments) + min(1.0, variety)) / 2, 3)


def _share(flags: Iterator[bool]) -> float:
    found = list(flags)
    return sum(found) / max(1, len(found))
