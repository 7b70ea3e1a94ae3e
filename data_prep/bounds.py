"""The bounds of a good document, as data: `quality.py` judges by them, and recipes set them.

    bounds = QualityBounds()                  # those of Gopher, FineWeb and StarCoder
    bounds.of("tha_Thai").min_sentences       # 0.0: Thai ends sentences with no mark

A least of 0 and a most of `inf` leave their rule out; then it does not count for `quality` either.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from data_prep.languages import LANGUAGES
from megatron_qwen3.fields import setting

_DENSE = {"min_letters": 120.0}  # scripts whose letters are syllables or more
_NO_MARKS = {"min_sentences": 0.0}  # sentences end in a space
_BY_LANGUAGE: Mapping[str, Mapping[str, float]] = {
    **dict.fromkeys(("Hans", "Hant", "Jpan", "Hang"), _DENSE),
    **dict.fromkeys(("tha_Thai", "lao_Laoo"), _NO_MARKS),
}


@dataclass(frozen=True)
class ProseBounds:
    """Bounds of prose. Where words are not separated, a character is a unit, and two are a word."""

    min_letter_share: float = setting(0.6, "few letters: of all that is no blank")
    min_letters: float = setting(240.0, "too short: 50 English words, as in Gopher")
    word_length_factor: float = setting(2.0, "odd word lengths: times the usual one, or less by it")
    max_symbols: float = setting(0.1, "symbols: # and … for each word")
    max_bullets: float = setting(0.9, "bullet points: of the lines")
    max_cut_off: float = setting(0.3, "cut off: lines that end in an ellipsis")
    short_line: float = setting(30.0, "characters below which a line is short")
    max_short_lines: float = setting(0.67, "short lines: of the lines")
    min_sentences: float = setting(0.12, "no sentences: lines that end in a mark")
    placeholders: tuple[str, ...] = setting(("lorem ipsum",), "placeholder: phrases to avoid")
    max_repeated_lines: float = setting(0.3, "repeated lines: of the lines")
    max_repeated_letters: float = setting(0.2, "repeated lines: of their characters")
    max_2_unit_phrase: float = setting(0.20, "one phrase: letters in the most frequent run of 2")
    max_3_unit_phrase: float = setting(0.18, "of 3")
    max_4_unit_phrase: float = setting(0.16, "of 4")
    max_repeats_of_5: float = setting(0.15, "repeated phrases: letters in runs of 5 that repeat")
    max_repeats_of_6: float = setting(0.14, "of 6; these count where runs of 5 are over a tenth")
    max_repeats_of_7: float = setting(0.13, "of 7")
    max_repeats_of_8: float = setting(0.12, "of 8")
    max_repeats_of_9: float = setting(0.11, "of 9")
    max_repeats_of_10: float = setting(0.10, "of 10")


@dataclass(frozen=True)
class CodeBounds:
    """Bounds of source code."""

    min_units: float = setting(10.0, "too short: names, words and numbers")
    max_line: float = setting(1000.0, "long lines: characters of the longest")
    max_mean_line: float = setting(100.0, "long lines: characters of one, in the mean")
    min_letter_share: float = setting(0.25, "few letters: of all characters")
    drop_generated: bool = setting(True, "generated: where the first 5 lines say so")
    min_distinct_lines: float = setting(0.2, "repeated lines: different ones, of those not empty")


@dataclass(frozen=True)
class QualityBounds:
    """by_language: bounds of prose that are others for a language (`tha_Thai`) or for all of a
    script (`Hans`); the language's own come first."""

    prose: ProseBounds = ProseBounds()
    code: CodeBounds = CodeBounds()
    by_language: Mapping[str, Mapping[str, float]] = field(
        default_factory=lambda: {name: dict(values) for name, values in _BY_LANGUAGE.items()}
    )

    def of(self, language: str) -> ProseBounds:
        """The bounds of prose in a language, by its code; `und` has the general ones."""
        known = LANGUAGES.get(language)
        of_script = self.by_language.get(known.script, {}) if known else {}
        others: dict[str, Any] = {**of_script, **self.by_language.get(language, {})}
        return replace(self.prose, **others)

    def faults(self) -> Iterator[str]:
        """Faults of the bounds, one line each."""
        for table, values in (("prose", self.prose), ("code", self.code)):
            for name, value in vars(values).items():
                if not isinstance(value, (bool, tuple)):
                    yield from _fault(f"quality.{table}.{name}", value)
        if "" in self.prose.placeholders:
            yield "quality.prose.placeholders has an empty phrase, which every text has"
        scripts = {language.script for language in LANGUAGES.values()}
        known = [one.name for one in fields(ProseBounds) if one.type is float]
        for language, others in self.by_language.items():
            where = f"quality.by_language.{language}"
            if language not in LANGUAGES and language not in scripts:
                yield (
                    f"{where}: neither one of the 119 languages, as tha_Thai, nor a script of "
                    "theirs, as Hans"
                )
            for name, value in others.items():
                if name not in known:
                    yield f"{where}.{name} is not known; valid: {', '.join(known)}"
                yield from _fault(f"{where}.{name}", value)


def _fault(name: str, value: float) -> Iterator[str]:
    if math.isnan(value) or value < 0:
        yield f"{name} = {value}; valid: 0 or more"
    if name.endswith("word_length_factor") and 0 < value < 1:
        yield f"{name} = {value}; valid: 1 or more, or 0 to leave the rule out"
