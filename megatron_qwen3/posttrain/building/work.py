"""The output folder and shared tools of a build: `with BuildWork(out, …) as work`.

    OUT/dialogs.jsonl       the result, for mq3 data dialogs; a run without a result
                            leaves that of an earlier run as it is
    OUT/report.json, .html  counts and reasons of dropped texts, with pictures in OUT/report
    OUT/dropped.jsonl       each dropped query and answer, with its numbers and texts
    OUT/problems.jsonl      lines of the input that could not be read
    OUT/answers.jsonl       all answers, from which the same command resumes
    OUT/command.json        the command that began the folder; others are refused

The first four are functions of the queries, the settings and the answers.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Self

from megatron_qwen3.chat import SOFT_SWITCH
from megatron_qwen3.posttrain.building.answer_log import AnswerLog
from megatron_qwen3.posttrain.building.answer_rules import AnswerRules
from megatron_qwen3.posttrain.building.checking import Checker
from megatron_qwen3.posttrain.building.outcomes import Outcomes
from megatron_qwen3.posttrain.building.queries import Query, QueryProblem
from megatron_qwen3.posttrain.building.steps import Steps
from megatron_qwen3.posttrain.verifiers.judging import Judges
from megatron_qwen3.storage.whole import write_whole

DIALOGS, REPORT, PAGE = "dialogs.jsonl", "report.json", "report.html"
DROPPED, PROBLEMS, ANSWERS, LOCK = "dropped.jsonl", "problems.jsonl", "answers.jsonl", "lock"
_PROBLEMS_REPORTED = 10


@dataclass
class BuildWork:
    """A context manager; the folder exists already, and this run owns it."""

    out: Path
    verifiers: Judges
    rules: AnswerRules
    steps: Steps = field(default_factory=Steps)

    def __post_init__(self) -> None:
        self.outcomes = Outcomes(self.out)
        self.log = AnswerLog(self.out / ANSWERS)
        self.checker = Checker(self.verifiers)

    def __enter__(self) -> Self:
        self.log.__enter__()
        if self.log.damaged:
            self.steps.say(f"{self.log.path}: {self.log.damaged:,} damaged lines are asked again")
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()
        self.outcomes.close()

    def drop_query(self, query: Query, reason: str, detail: str = "", **numbers: float) -> None:
        self.outcomes.drop("query", query, reason, numbers, detail=detail)


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON lines, whole or not at all; the same lines as before leave the file alone."""
    lines = (json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n" for row in rows)
    write_whole(path, lines, keep_same=True)


def write_result(
    work: BuildWork,
    rows: Iterable[dict[str, Any]],
    problems: Sequence[QueryProblem],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Write all files but the page; returns the content of report.json, which is written last.
    Without any row dialogs.jsonl is left alone."""
    found = Summary()
    if (first := next(iter(rows := iter(rows)), None)) is not None:
        write_lines(work.out / DIALOGS, map(found.add, chain([first], rows)))
    write_whole(work.out / DROPPED, work.outcomes.dropped())
    write_lines(work.out / PROBLEMS, (problem._asdict() for problem in problems))
    content = {
        "version": 1,
        **about,
        **work.outcomes.content(),
        "problems": dict(sorted(Counter(problem.kind for problem in problems).items())),
        "first_problems": [problem._asdict() for problem in problems[:_PROBLEMS_REPORTED]],
        "dialogs": found.content(),
    }
    text = json.dumps(content, ensure_ascii=False, indent=1)
    write_whole(work.out / REPORT, [text.encode("utf-8", "replace"), b"\n"])
    return content


class Summary:
    """Counts of dialogs by mode, domain, source and flags, and their lengths.

    Lengths are characters of thinking and answer of each assistant's turn, by powers of two.
    """

    def __init__(self) -> None:
        self.count = 0
        self._by: dict[str, Counter[str]] = {n: Counter() for n in ("mode", "domain", "source")}
        self._by["flags"] = Counter()
        self._lengths: dict[str, Counter[int]] = {"thinking": Counter(), "answer": Counter()}

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Count a row, and return it."""
        self.count += 1
        self._by["mode"][row.get("mode", "mixed")] += 1
        self._by["domain"][row.get("domain") or "none"] += 1
        self._by["source"][row["source"]] += 1
        self._by["flags"][_flags(row["messages"])] += 1
        for message in row["messages"]:
            if message["role"] == "assistant":
                self._lengths["thinking"][_low(message.get("reasoning_content"))] += 1
                self._lengths["answer"][_low(message.get("content"))] += 1
        return row

    def content(self) -> dict[str, Any]:
        """The report's entries. lengths: [lower bound of a range up to twice that, count]."""
        return {
            "count": self.count,
            "turns": self._lengths["answer"].total(),
            "by": {name: dict(sorted(found.items())) for name, found in self._by.items()},
            "lengths": {name: sorted(found.items()) for name, found in self._lengths.items()},
        }


def _low(text: str | None) -> int:
    return 1 << (len(text).bit_length() - 1) if text else 0


def _flags(messages: Sequence[dict[str, Any]]) -> str:
    """The flags of a dialog: "/no_think", "both", "in system", "none", …."""
    texts = {
        role: "\n".join(m["content"] for m in messages if m["role"] == role and m.get("content"))
        for role in ("system", "user")
    }
    found = set(SOFT_SWITCH.findall("\n".join(texts.values())))
    if SOFT_SWITCH.search(texts["system"]):
        return "in system"
    return "none" if not found else "both" if len(found) > 1 else found.pop()
