"""Verifiers that compare texts, letters, numbers, lengths and languages.

Each takes the answer without its thinking and the fields of its spec, and gives "" where the answer
is right, else the reason why it is wrong. `CannotJudge` where the fields are invalid.
"""

import math
import re
from fractions import Fraction
from functools import cache
from typing import Literal

from data_prep.language_id import FEWEST_LETTERS, Identifier
from data_prep.languages import LANGUAGES, UNKNOWN, code_of
from data_prep.scripts import count_letters
from megatron_qwen3.posttrain.verifiers import choices, final
from megatron_qwen3.posttrain.verifiers.final import CannotJudge

_WORD = re.compile(r"\w+(?:['’.-]\w+)*")
_SENTENCE_END = re.compile(r"(?:[.!?]+[\"'”’)\]]*(?=\s|$))|[。！？]+")
_FRACTION = re.compile(r"(\d?)\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_NUMBER = re.compile(
    r"(?<![A-Za-z_\d.])[-+−]?(?:\d+ +(?=\d+/\d))?"  # 3 1/2
    r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?"
    r"(?:\s*/\s*\d+)?(?:\s*\\?%)?"
)


def exact(
    answer: str,
    *,
    gold: str | list[str],
    ignore_case: bool = False,
    part: Literal["whole", "box", "last_line"] = "whole",
) -> str:
    """The answer equals `gold`, or one of several; the number of spaces does not count."""
    golds = [gold] if isinstance(gold, str) else gold
    if not golds:
        raise CannotJudge("gold is an empty list")
    found = _part(answer, part)
    if found is None:
        return "there is no box that is closed"
    given, *wanted = (" ".join(one.split()) for one in (found, *golds))
    if ignore_case:
        given, wanted = given.casefold(), [one.casefold() for one in wanted]
    return "" if given in wanted else f"{given!r:.80} is not {wanted[0]!r:.80}"


def _part(answer: str, part: str) -> str | None:
    if part == "box" and final.has_open_box(answer):
        return None
    if part == "box":
        return next(reversed(final.boxes(answer)), None)
    lines = answer.strip().splitlines()
    return answer if part == "whole" or not lines else lines[-1]


def numeric(answer: str, *, gold: float | str, tolerance: float = 0, relative: float = 0) -> str:
    """The last box, or without one the last number of the text, is `gold`.

    Right where |number - gold| <= max(tolerance, relative |gold|). Numbers are compared exactly, so
    0.1 is one tenth; `gold` may be a text, such as "1/3".
    """
    wanted = final.number(str(gold))
    if wanted is None or not all(0 <= one < math.inf for one in (tolerance, relative)):
        raise CannotJudge(
            f"gold = {gold!r:.80} is no number, or a tolerance is below 0 or infinite"
        )
    given = last_number(answer)
    if given is None:
        return "no number is given as the answer"
    allowed = max(Fraction(str(tolerance)), Fraction(str(relative)) * abs(wanted))
    distance = abs(given - wanted)
    return "" if distance <= allowed else f"{_shown(given)} is not {_shown(wanted)}"


def _shown(value: Fraction) -> str:
    try:
        return f"{float(value):.12g}"
    except OverflowError:
        return "a number above 1e308"


def last_number(answer: str) -> Fraction | None:
    """The number in the last box; in a text without a box, the last number."""
    if final.has_open_box(answer):
        return None
    boxed = final.boxes(answer)
    text = final.joined_digits(boxed[-1] if boxed else final.tagged(answer))
    if boxed and (value := final.number(text)) is not None:
        return value
    text = _FRACTION.sub(lambda m: f"{m[1]} {m[2]}/{m[3]}" if m[1] else f"{m[2]}/{m[3]}", text)
    numbers = [one for one in _NUMBER.finditer(text) if one.group().strip()]
    found = [one.group() for one in numbers if not _is_other(text, one)]
    if not found or (boxed and len(found) > 1):
        return None  # several numbers in one box are no answer
    return final.number(found[-1])


def _is_other(text: str, match: re.Match[str]) -> bool:
    """Whether a number is a base, a power, or denied: `5 cm^2`, `5, not 6`."""
    before, after = text[: match.start()], text[match.end() :]
    return bool(re.search(r"\^\{?\s*$|\b(?:not|isn['’]t)\s+$", before[-8:])) or after[:1] == "^"


def choice(answer: str, *, gold: str, letters: str = "ABCDEFGHIJ") -> str:
    """Multiple choice: the letter that the answer settles on is `gold`."""
    if len(gold) != 1 or gold not in letters:
        raise CannotJudge(f"gold = {gold!r:.80}; valid: one letter of {letters}")
    given = choices.chosen_letter(answer, letters)
    if given is None:
        return "no letter is given as the answer"
    return "" if given == gold else f"{given} is not {gold}"


def length(
    answer: str,
    *,
    unit: Literal["words", "characters", "sentences", "paragraphs", "lines"] = "words",
    least: int = 0,
    most: int | None = None,
) -> str:
    """The answer has at least `least` and at most `most` of a unit."""
    if least < 0 or (most is not None and most < least):
        raise CannotJudge(f"least = {least}, most = {most}; valid: 0 <= least <= most")
    count = _count(answer.strip(), unit)
    if count < least or (most is not None and count > most):
        limit = f"at least {least}" if count < least else f"at most {most}"
        return f"{count} {unit}; asked: {limit}"
    return ""


def _count(text: str, unit: str) -> int:
    if unit == "characters":
        return len(text)
    if unit == "words":
        return len(_WORD.findall(text))
    if unit == "sentences":
        return sentences(text)
    parts = re.split(r"\n\s*\n" if unit == "paragraphs" else r"\n", text)
    return sum(1 for part in parts if part.strip())


def sentences(text: str) -> int:
    """Number of sentences, by their ends; a rest without an end counts, too."""
    ends = [match for match in _SENTENCE_END.finditer(text) if not _is_within(text, match)]
    rest = text[ends[-1].end() :] if ends else text
    return len(ends) + bool(re.search(r"\w", rest))


# Abbreviations with a full stop: always, only before a number, except before a capital.
_ALWAYS = "mr mrs ms dr prof st vs e.g i.e cf dept gen lt sgt capt rev hon approx b.a m.a b.sc m.sc"
_BEFORE_NUMBERS = "no fig vol p pp ch sec jan feb mar apr jun jul aug sep sept oct nov dec"
# Words that begin a sentence rather than a surname: `Plan B. It`, but `J. Doe`.
_BEGINNERS = "a after all an and as at before but each for from he her here his how however i if in"
_BEGINNERS += " is it its let my no not now on one our she so some that the their then there these"
_BEGINNERS += " they this those to we what when where while who why with yes you your"
_BUT_BEFORE_CAPITALS = "etc inc ltd co corp jr sr u.s u.k a.m p.m ph.d"


def _is_within(text: str, end: re.Match[str]) -> bool:
    """Whether the sentence continues: `Dr. Who`, `J. Doe`, `1. first`, `Well... no`."""
    rest = text[end.end() :].lstrip()
    if rest[:1].islower() and (end.group().startswith("..") or end.group()[-1] in "\"'”’"):
        return True  # "Why?" he said
    if end.group()[0] != "." or end.group().startswith("..") or not rest:
        return False
    before = re.search(r"(?:^|[\s(\"'“])([^\s(\"'“]+)$", text[: end.start()][-30:])
    word = before.group(1) if before else ""
    if word.isdecimal():  # the number of an item of a list
        return bool(re.search(r"(?:^|\n)\s*$", text[: end.start() - len(word)]))
    following = re.match(r"\w+", rest)
    begins = following is not None and following.group().lower() in _BEGINNERS.split()
    is_initial = len(word) == 1 and word.isupper() and word != "I" and not begins
    if re.fullmatch(r"(?:[A-Za-z]\.)+[A-Za-z]", word) and not rest[0].isupper():
        return True  # Washington, D.C. yesterday
    return is_initial or (
        word.lower() in _ALWAYS.split()
        or (word.lower() in _BEFORE_NUMBERS.split() and rest[0].isdecimal())
        or (word.lower() in _BUT_BEFORE_CAPITALS.split() and not rest[0].isupper())
    )


def cited(answer: str, *, gold: str, sources: list[int], others: list[str] | None = None) -> str:
    """The answer contains `gold`, cites exactly these sources as [2] or [1, 3], and names none of
    `others`: listing all candidates, or citing every source, is no answer."""
    if not gold.strip():
        raise CannotJudge("gold is empty")
    groups = re.findall(r"\[\s*(\d{1,6}(?:\s*[,;]\s*\d{1,6})*)\s*\]", answer)
    given = {int(number) for group in groups for number in re.findall(r"\d+", group)}
    if given != set(sources):
        return f"cites {sorted(given)}; asked: {sorted(set(sources))}"
    if not _has(gold, answer):
        return f"without {gold!r:.60}"
    named = [one for one in others or () if _has(one, answer)]
    return f"names {named[0]!r:.60}, too" if named else ""


def _has(phrase: str, text: str) -> bool:
    """Whether a text contains a phrase as whole words, ignoring case."""
    words = r"\s+".join(map(re.escape, phrase.split()))
    return bool(re.search(rf"(?<!\w){words}(?!\w)", text, re.I))


def language(answer: str, *, language: str) -> str:
    """The answer is in a language, named by ISO 639 or as in data_prep's languages.csv."""
    wanted = code_of(language)
    if wanted == UNKNOWN:
        raise CannotJudge(f"language = {language!r:.80} is none of the {len(LANGUAGES)} known ones")
    found = language_of(answer)
    if found == UNKNOWN:
        return "the language of the text is not recognised"
    return "" if found == wanted else f"written in {found}, asked for {wanted}"


def language_of(text: str) -> str:
    """The language of a text without its code and formulas; `und` without letters.

    A text too short for data_prep's identification is repeated until it is long enough.
    """
    without = re.sub(r"```.*?(?:```|$)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$", " ", text, flags=re.S)
    letters = count_letters(without)
    repeated = (without + " ") * -(-FEWEST_LETTERS // letters) if letters else ""
    return _identifier()(repeated if letters < FEWEST_LETTERS else without)


def load_languages() -> None:
    """Load the language models, which takes a second."""
    _identifier()("The quick brown fox jumps over the lazy dog, and nobody knows why it does.")


@cache
def _identifier() -> Identifier:
    return Identifier()
