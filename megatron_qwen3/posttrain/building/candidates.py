"""Rejection sampling: draws answers to queries, applies rules and verifiers, keeps those that pass.

    passed = draw(work, generator, queries, request_of, "answers with thinking")
    passed[0].query, passed[0].number, passed[0].pass_rate

Every answer is counted in `work.outcomes` with its numbers under its first fault; faulty ones are
written to dropped.jsonl. Texts stay in files: only numbers are in memory.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_qwen3.fields import setting
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.building.answer_rules import Fault, Numbers
from megatron_qwen3.posttrain.building.asking import answers_to, ask
from megatron_qwen3.posttrain.building.checking import Checked
from megatron_qwen3.posttrain.building.choosing import PassedAnswer
from megatron_qwen3.posttrain.building.queries import Query
from megatron_qwen3.posttrain.building.work import BuildWork
from megatron_qwen3.posttrain.generators.answers import OWN, Answer, Request, said
from megatron_qwen3.posttrain.generators.opened import AnyGenerator

_AT_A_TIME = 64  # queries whose answers are verified together
NOT_ANSWERED, VERIFIER_FAILED = "not answered", "verifier failed"


@dataclass(frozen=True)
class DrawSettings:
    """How answers are drawn."""

    samples: int = setting(8, "answers to each query", at_least=1)
    max_tokens: int = setting(32768, "tokens of an answer, thinking included", at_least=1)
    temperature: float = setting(OWN, "-1: Qwen3's, or the endpoint's own")
    top_p: float = setting(OWN, "-1: Qwen3's, or the endpoint's own")
    top_k: int = setting(OWN, "-1: Qwen3's, or the endpoint's own")
    draw_seed: int = setting(0, "of the answers", at_least=0)

    def __post_init__(self) -> None:
        options.check(self)
        Request((), samples=self.samples, max_tokens=self.max_tokens, **said(self))

    def seed_of(self, query: Query) -> int:
        """The query's own seed, so that draws of different queries are independent."""
        digest = hashlib.sha256(f"{self.draw_seed}/{query.id}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def request(self, query: Query, samples: int, thinks: bool) -> Request:
        """A request for answers to a query."""
        return Request(
            query.messages,
            query.tools or None,
            samples=samples,
            enable_thinking=thinks,
            max_tokens=self.max_tokens,
            seed=self.seed_of(query),
            **said(self),
        )


def answers_there(
    work: BuildWork,
    generator: AnyGenerator,
    queries: Sequence[Query],
    request_of: Callable[[Query], Request],
    title: str,
) -> tuple[list[int], dict[int, str]]:
    """Number of answers of each query, and the reasons of queries with fewer than requested."""
    requests = [request_of(query) for query in queries]
    failures = ask(generator, work.log, requests, work.steps, title)
    return [len(answers_to(generator, work.log, request)) for request in requests], failures


def draw(
    work: BuildWork,
    generator: AnyGenerator,
    queries: Sequence[Query],
    request_of: Callable[[Query], Request],
    title: str,
    is_final: bool = True,
) -> list[PassedAnswer]:
    """The answers that pass all rules and, where the query has one, its verifier.

    is_final: count them as kept; else the caller grades and counts them.
    """
    counts, failures = answers_there(work, generator, queries, request_of, title)
    for number, reason in sorted(failures.items()):
        work.outcomes.drop("answer", queries[number], NOT_ANSWERED, detail=reason)
    there = [query for query, count in zip(queries, counts, strict=True) if count]
    passed: list[PassedAnswer] = []
    with work.steps.bar(f"{title}: judged", len(there)) as bar:
        for start in range(0, len(there), _AT_A_TIME):
            part = there[start : start + _AT_A_TIME]
            passed += _passing(work, generator, part, request_of)
            for _ in part:
                bar.advance()
    for sample in passed if is_final else ():
        work.outcomes.keep("answer", sample.query, sample.numbers)
    return passed


def _passing(
    work: BuildWork,
    generator: AnyGenerator,
    queries: Sequence[Query],
    request_of: Callable[[Query], Request],
) -> list[PassedAnswer]:
    requests = {query.id: request_of(query) for query in queries}
    answers = [
        (query, number, answer)
        for query in queries
        for number, answer in enumerate(answers_to(generator, work.log, requests[query.id]))
    ]
    verified = iter(work.checker.check([(q, answer) for q, _, answer in answers if q.verifier]))
    checked = [next(verified) if q.verifier else None for q, _, _ in answers]
    right: dict[str, list[bool]] = {}  # verdicts by query
    for (query, _, _), verdict in zip(answers, checked, strict=True):
        if verdict is None or verdict.score is not None:
            right.setdefault(query.id, []).append(verdict is None or verdict.score == 1)
    passed: list[PassedAnswer] = []
    texts: set[tuple[str, str]] = set()
    for (query, number, answer), verdict in zip(answers, checked, strict=True):
        judged = work.rules.judge(query, answer, requests[query.id].enable_thinking)
        faults = [*judged.faults, *_verdict_faults(verdict)]
        if not faults and (query.id, answer.text) in texts:
            faults.append(("same as another answer", ""))
        texts.add((query.id, answer.text))
        verdicts = right.get(query.id, [])
        rate = sum(verdicts) / len(verdicts) if verdicts else 0.0
        numbers = judged.numbers | ({"pass rate": rate} if verdicts else {})
        if faults:
            drop_answer(work, query, answer, faults, numbers)
            continue
        size = len(answer.thinking) + len(answer.content)
        sample = PassedAnswer(query, number, size, rate, judged.language, numbers=numbers)
        passed.append(sample)
    return passed


def drop_answer(
    work: BuildWork, query: Query, answer: Answer, faults: Sequence[Fault], numbers: Numbers
) -> None:
    """Count a dropped answer under its first fault, and record all its faults."""
    told = [f"{name}: {detail}" if detail else name for name, detail in faults]
    work.outcomes.drop("answer", query, _first(faults), numbers, answer, detail="; ".join(told))


_WEIGHTIEST = ("wrong answer", VERIFIER_FAILED)


def _first(faults: Sequence[Fault]) -> str:
    """The fault to report: a wrong answer before all others, except an unfinished one."""
    names = [name for name, _ in faults]
    if names[0] in ("cut off", "no answer"):
        return names[0]
    return next((name for name in _WEIGHTIEST if name in names), names[0])


def _verdict_faults(verdict: Checked | None) -> list[Fault]:
    if verdict is None:
        return []
    if verdict.score is None:
        return [(VERIFIER_FAILED, verdict.reason)]
    if verdict.score < 1:
        return [("wrong answer", verdict.reason)]
    if verdict.agrees is False:
        return [("thinking and answer disagree", "the thinking comes to another result")]
    return []


def taken_of(samples: Sequence[PassedAnswer], chosen: Sequence[int]) -> dict[str, dict[str, int]]:
    """By domain: number of answers that passed, and of those taken."""
    counts: dict[str, dict[str, int]] = {}
    is_taken = set(chosen)
    for number, sample in enumerate(samples):
        row = counts.setdefault(sample.query.domain or "none", {"passed": 0, "taken": 0})
        row["passed"] += 1
        row["taken"] += number in is_taken
    return dict(sorted(counts.items()))
