"""Rules that an answer must pass to be trained: one function for each rule of Qwen3's cold start.

    rules = AnswerRules(settings, passages)
    judged = rules.judge(query, answer)
    judged.faults, judged.numbers          # [("repetition", "…")], {"repeated": 0.41}

A fault is (reason, detail), with one of a few reasons. The rules are those of the Qwen3 technical
report, section 4.1 (arXiv 2505.09388): they drop answers that are wrong, repeat themselves
substantially, guess without deriving, contradict their thinking, mix languages or resemble
validation items. A verifier, in another process, checks the final answer (`checking.py`).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from data_prep.languages import UNKNOWN
from data_prep.passages import Passages
from data_prep.units import Units, shingles, split
from megatron_qwen3.chat import END_THINK, THINK
from megatron_qwen3.fields import setting
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.building.languages import LanguageUse, Use
from megatron_qwen3.posttrain.building.queries import Query
from megatron_qwen3.posttrain.generators.answers import Answer

Fault = tuple[str, str]
Numbers = dict[str, float]
_RUN = 16  # units, or twice as many characters, whose repetition is no coincidence
_GUESSES = re.compile(
    r"\b(?:i(?:'ll| will| would| can|'d)? (?:just |have to |only )*guess"
    r"|(?:just|random|wild|lucky) guess|guess(?:ing)? (?:randomly|at random|that the answer)"
    r"|pick (?:one )?at random)\b|瞎猜|随便猜|猜一个",
    re.IGNORECASE,
)
_END_CHARACTERS = 600  # at the end of thinking, where a guess would be the conclusion


@dataclass(frozen=True)
class AnswerSettings:
    """Bounds on answers."""

    most_repeated: float = setting(
        0.3, "largest share of an answer that may repeat its own passages", above=0
    )
    most_loops: int = setting(8, "most occurrences of one passage in an answer", at_least=1)
    fewest_steps: int = setting(12, "fewest words of thinking that derive an answer", at_least=0)
    most_foreign: float = setting(
        0.1, "most letters of an answer, as a share, in another language", at_least=0, at_most=1
    )
    multilingual: tuple[str, ...] = setting(
        ("translation", "language"), "domains whose answers may mix languages", metavar="DOMAIN"
    )
    most_passages: int = setting(
        0, "most passages of 13 tokens that an answer may share with a validation item", at_least=0
    )

    def __post_init__(self) -> None:
        options.check(self)


class JudgedAnswer(NamedTuple):
    """faults: of the answer; language: of its thinking, or of an answer without thinking."""

    faults: list[Fault]
    numbers: Numbers
    language: str = UNKNOWN


class AnswerRules:
    """The rules that need only the answer; passages: of validation items, None without any."""

    def __init__(self, settings: AnswerSettings, passages: Passages | None) -> None:
        self._settings, self._passages = settings, passages

    @cached_property
    def _languages(self) -> LanguageUse:
        return LanguageUse()

    def prepare(self) -> None:
        """Load the language models. ConfigError where they are not installed."""
        self._languages.of("the models of languages are loaded with the first text " * 4)

    def judge(self, query: Query, answer: Answer, thinks: bool = True) -> JudgedAnswer:
        """thinks: whether the answer must have thinking; otherwise it must have none."""
        numbers: Numbers = {
            "characters of thinking": len(answer.thinking),
            "characters of the answer": len(answer.content),
        }
        if form := list(_form(answer, thinks)):
            return JudgedAnswer(form, numbers)
        faults = [
            *self._repetition(answer, numbers),
            *(self._derivation(answer, numbers) if thinks else ()),
        ]
        uses = {
            "thinking": self._languages.of(answer.thinking, query.text),
            "answer": self._languages.of(answer.content, query.text),
        }
        faults += self._language(query, uses, numbers)
        faults += self._similarity(answer, numbers)
        return JudgedAnswer(faults, numbers, uses["thinking" if thinks else "answer"].main)

    def _repetition(self, answer: Answer, numbers: Numbers) -> Iterator[Fault]:
        shares, loops = zip(
            *(repetition(split(part)) for part in (answer.thinking, answer.content)), strict=True
        )
        numbers["repeated"], numbers["loops"] = max(shares), max(loops)
        if max(shares) > self._settings.most_repeated:
            yield "repetition", f"{max(shares):.0%} stood there before"
        elif max(loops) > self._settings.most_loops:
            yield "repetition", f"one passage occurs {max(loops)} times"

    def _derivation(self, answer: Answer, numbers: Numbers) -> Iterator[Fault]:
        units = split(answer.thinking)
        steps = len(units) / (2 if units.without_spaces else 1)
        numbers["words of thinking"] = steps
        if steps < self._settings.fewest_steps:
            yield "no derivation", f"{steps:g} words of thinking"
        elif guess := _GUESSES.search(answer.thinking[-_END_CHARACTERS:]):
            yield "no derivation", f"ends with {guess.group()!r}"

    def _language(self, query: Query, uses: Mapping[str, Use], numbers: Numbers) -> Iterator[Fault]:
        if query.domain in self._settings.multilingual:
            return
        for name, use in uses.items():
            numbers[f"foreign in {name}"] = use.foreign
            numbers[f"script changes in {name}"] = use.changes
        for name, use in uses.items():
            if use.foreign > self._settings.most_foreign:
                others = ", ".join(use.others)
                yield "languages mixed", f"{name} has {use.main} and {others} ({use.foreign:.0%})"
                return

    def _similarity(self, answer: Answer, numbers: Numbers) -> Iterator[Fault]:
        if self._passages is None:
            return
        hits = self._passages.hits(f"{answer.thinking}\n\n{answer.content}")
        most = max((hit["passages"] for hit in hits), default=0)
        numbers["passages of a validation item"] = most
        if most > self._settings.most_passages:
            yield "like a validation item", f"{most} passages of {hits[0]['item']}"


def _form(answer: Answer, thinks: bool) -> Iterator[Fault]:
    """Faults after which the other rules would mean nothing."""
    if answer.finish == "length":
        yield "cut off", "the limit of tokens came first"
        return
    if not answer.content.strip():
        yield "no answer", "no text follows the thinking"
        return
    opened, closed = answer.text.count(THINK), answer.text.count(END_THINK)
    if thinks and not answer.thinking.strip():
        yield "no thinking", ""
    elif opened > 1 or closed != int(thinks or opened):
        yield "think block broken", f"{opened} times {THINK}, {closed} times {END_THINK}"
    elif not thinks and answer.thinking.strip():
        yield "thinking where none was asked for", ""
    elif "<|im_" in answer.text or "<|endoftext|>" in answer.text:
        yield "control tokens", ""


def repetition(units: Units) -> tuple[float, int]:
    """The share of units in runs of 16 that occurred before, and the highest count of one run.

    In scripts without spaces a run has 32 characters.
    """
    size = 2 * _RUN if units.without_spaces else _RUN
    if len(units) <= size:
        return 0.0, 0
    runs = shingles(units.hashes, size)
    _, first, counts = np.unique(runs, return_index=True, return_counts=True)
    again = np.ones(len(runs), np.int64)
    again[first] = 0
    covered = np.convolve(again, np.ones(size, np.int64)) > 0
    return float(covered.mean()), int(counts.max())
