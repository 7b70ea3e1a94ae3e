"""Verifies final answers, and checks that the thinking came to the same result.

    checker = Checker(verifiers)
    checker.check([(query, answer), …])       # a Checked for each, in order

The thinking agrees with a right answer where the verifier accepts a result that the thinking
states. Such a result is its last box; without a box, the text after its last "the answer is" and
the right side of equations after that; without either, the right sides of its last equations, or
the answer's own words. For kinds without a short final answer, and for thinking that states no
result, agreement is unknown.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from megatron_qwen3.posttrain.building.queries import Query
from megatron_qwen3.posttrain.generators.answers import Answer
from megatron_qwen3.posttrain.verifiers.final import boxes
from megatron_qwen3.posttrain.verifiers.judging import Judges

SHORT_KINDS = ("math", "numeric", "choice", "exact")
_SAID = re.compile(
    r"(?:answer(?: is|:|\s*=)|(?:答案|答え)\s*(?:是|为|為|は|：|:))\s*", re.IGNORECASE
)
# The end of a stated result.
_UP_TO = re.compile(r"[.!?](?=\s|$)|[,;]\s|\s+[-–—]+\s|\n|$|[。！？，、；]|です|である")
_STATES = re.compile(r"\d|^\W*(?:[a-z]|\\\w+)\W*$", re.IGNORECASE)  # a number, letter or symbol
_EQUALS = re.compile(r"=\s*([^=\n]{1,60}?)\s*(?=[.,;\n]|$)", re.MULTILINE)
_AROUND = " *$`:"
_LAST = 5  # equations that are looked at
_LONGEST_SAID = 200  # characters of a stated result
_LONGEST = 40  # characters of an answer whose words are searched for


Spec = Mapping[str, Any]


class Checked(NamedTuple):
    """score: the verifier's, None where it failed; agrees: None where unknown."""

    score: float | None
    reason: str
    agrees: bool | None


class Checker:
    """verifiers: `posttrain.verifiers.Verifiers`, entered."""

    def __init__(self, verifiers: Judges) -> None:
        self._verifiers = verifiers

    def check(self, asked: Sequence[tuple[Query, Answer]]) -> list[Checked]:
        """Verify answers to queries with verifiers, and compare the thinking of right answers."""
        verdicts = self._verifiers.judge([(query.verifier, answer.text) for query, answer in asked])
        right = [n for n, verdict in enumerate(verdicts) if verdict.score == 1]
        agreeing = dict(zip(right, self._agreements([asked[n] for n in right]), strict=True))
        return [
            Checked(verdict.score, verdict.reason, agreeing.get(n))
            for n, verdict in enumerate(verdicts)
        ]

    def _agreements(self, asked: Sequence[tuple[Query, Answer]]) -> list[bool | None]:
        """For each right answer; all stated results go to the verifiers in one call."""
        stated_by = [_results(query, answer) for query, answer in asked]
        results = [found for found, _ in stated_by]
        specs = [
            (query.verifier, _as_answer(query.verifier or {}, result))
            for (query, _), stated in zip(asked, results, strict=True)
            for result in stated or ()
        ]
        verdicts = iter(self._verifiers.judge(specs))
        agreements: list[bool | None] = []
        for (_, answer), (stated, is_final) in zip(asked, stated_by, strict=True):
            scores = [next(verdicts).score for _ in stated or ()]
            if not stated:
                agreements.append(None)
            elif any(score == 1 for score in scores) or (not is_final and _is_said(answer)):
                agreements.append(True)
            else:
                agreements.append(None if None in scores else False)
        return agreements


def _results(query: Query, answer: Answer) -> tuple[list[str], bool]:
    """The results that the thinking states, the last first; whether it calls them the answer.

    Empty for kinds without a short answer.
    """
    if (query.verifier or {}).get("kind") not in SHORT_KINDS:
        return [], False
    thinking = answer.thinking
    if boxed := boxes(thinking):
        return boxed[-1:], True  # a box is the conclusion, whatever else was tried
    place, said = _last_said(query, thinking)
    equal = [match.group(1).strip(_AROUND) for match in _EQUALS.finditer(thinking, place)]
    found = [text for text in [*said, *equal[::-1][:_LAST]] if text]
    return list(dict.fromkeys(found)), bool(said)


def _last_said(query: Query, thinking: str) -> tuple[int, list[str]]:
    """The text after the last "the answer is" that states a result, and its end.

    Words that state none, as in "the answer is clear", are skipped: a verifier of formulas could
    only reject them.
    """
    of_words = (query.verifier or {}).get("kind") == "exact"
    for match in reversed(list(_SAID.finditer(thinking))):
        end = _UP_TO.search(thinking, match.end())
        place = end.start() if end else len(thinking)
        said = thinking[match.end() : place].strip(_AROUND)
        if len(said) <= _LONGEST_SAID and said and (of_words or _STATES.search(said)):
            return place, [said]
    return 0, []


def _as_answer(spec: Spec, result: str) -> str:
    """A text whose answer is this result, in the form that the verifier expects."""
    is_bare = spec.get("kind") == "exact" and spec.get("part", "whole") != "box"
    return result if is_bare else f"\\boxed{{{result}}}"


def _is_said(answer: Answer) -> bool:
    """Whether the thinking contains the answer's box, apart from blanks and formatting."""
    stated = boxes(answer.content)
    final = _bare(stated[-1]) if stated else ""
    if not final or len(final) > _LONGEST:
        return False
    found = re.search(rf"(?<![\w.]){re.escape(final)}(?![\w]|\.\d)", _bare(answer.thinking))
    return found is not None


def _bare(text: str) -> str:
    """Text with blanks only between words, without dollars, braces and spacing of formulas."""
    return re.sub(r"\s+", " ", re.sub(r"\\[,;! ]|[${}*`]|\\(?:left|right|text|mathrm)\b", "", text))
