"""Counts which queries and answers were kept or dropped, and why, with examples and full texts.

    outcomes = Outcomes(folder)
    outcomes.drop("query", query, "several questions", {"questions": 2})
    outcomes.drop("answer", query, "wrong answer", numbers, answer)
    outcomes.keep("answer", query, numbers)
    outcomes.commonest()                # a line for the log
    outcomes.content()                  # for report.json
    outcomes.dropped()                  # a line for each dropped one, with its whole text

Texts are not trusted: examples are cut to a length, and only escaped when shown or written.
"""

import json
import tempfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from megatron_qwen3.posttrain.building.queries import Query
from megatron_qwen3.posttrain.generators.answers import Answer

Level = Literal["query", "answer"]
LEVELS: tuple[Level, ...] = ("query", "answer")
PLURALS = {"query": "queries", "answer": "answers"}
Numbers = Mapping[str, float]
KEPT = "kept"
_EXAMPLES = 3  # per reason
_EXAMPLE_CHARACTERS = 1200
_BYTES_IN_MEMORY = 1 << 24  # of dropped texts; more go into an unnamed file


class Outcomes:
    """Counts by level, reason and domain. folder: place of an unnamed file that holds texts until
    they are written and ends with the process."""

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()
        self.examples: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self._lines = tempfile.SpooledTemporaryFile(_BYTES_IN_MEMORY, dir=str(folder))  # noqa: SIM115
        self.numbers: dict[str, array[float]] = defaultdict(lambda: array("d"))

    def drop(
        self,
        level: Level,
        query: Query,
        reason: str,
        numbers: Numbers | None = None,
        answer: Answer | None = None,
        detail: str = "",
    ) -> None:
        """Record a dropped query or answer. reason: one of a few; detail: of this case."""
        self._count(level, query, reason, numbers)
        row = {
            "level": level,
            "id": query.id,
            "place": query.place,
            "domain": query.domain,
            "reason": reason,
            "detail": detail,
            "numbers": dict(numbers or {}),
        }
        texts = {"thinking": answer.thinking, "answer": answer.content} if answer else {}
        line = json.dumps(row | texts, ensure_ascii=False)
        self._lines.write(line.encode("utf-8", "replace") + b"\n")
        examples = self.examples[level, reason]
        if len(examples) < _EXAMPLES:
            text = answer.text if answer else ""
            examples.append(row | {"query": _excerpt(query.text), "answer": _excerpt(text)})

    def dropped(self) -> Iterator[bytes]:
        """A line of JSON for each dropped query or answer, in order."""
        self._lines.seek(0)
        yield from self._lines
        self._lines.seek(0, 2)

    def close(self) -> None:
        self._lines.close()

    def keep(self, level: Level, query: Query, numbers: Numbers | None = None) -> None:
        self._count(level, query, KEPT, numbers)

    def reasons(self, level: Level) -> Counter[str]:
        """Counts of a level by reason, KEPT among them."""
        found: Counter[str] = Counter()
        for (of, reason, _), count in self.counts.items():
            if of == level:
                found[reason] += count
        return found

    def commonest(self) -> str:
        """The commonest reason to drop queries, or answers where no query was dropped."""
        for level in LEVELS:
            for reason, _ in self.reasons(level).most_common():
                if reason != KEPT:
                    detail = self.examples[level, reason][0]["detail"]
                    return f"most {PLURALS[level]}: {reason}" + (f" ({detail})" if detail else "")
        return ""

    def content(self) -> dict[str, Any]:
        """All counts and examples, sorted."""
        examples: list[dict[str, Any]] = []
        for level, reason in sorted(self.examples):
            examples += self.examples[level, reason]
        return {
            "counts": [[*key, count] for key, count in sorted(self.counts.items())],
            "numbers": {name: _summary(self.numbers[name]) for name in sorted(self.numbers)},
            "examples": examples,
        }

    def _count(self, level: Level, query: Query, reason: str, numbers: Numbers | None) -> None:
        self.counts[level, reason, query.domain] += 1
        for name, value in (numbers or {}).items():
            self.numbers[f"{level}: {name}"].append(float(value))


def _summary(values: Iterable[float]) -> dict[str, float]:
    ordered = sorted(values)
    places = {"least": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "most": 1.0}
    found = {name: ordered[round(p * (len(ordered) - 1))] for name, p in places.items()}
    return {"count": len(ordered), **{name: round(value, 4) for name, value in found.items()}}


def _excerpt(text: str) -> str:
    if len(text) <= _EXAMPLE_CHARACTERS:
        return text
    half = _EXAMPLE_CHARACTERS // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters …\n{text[-half:]}"
