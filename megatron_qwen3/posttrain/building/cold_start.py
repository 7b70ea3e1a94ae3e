"""Builds the data of a cold start: few queries that need thinking, with good answers.

    rows, about = build(work, queries, ColdStartModels(generator, direct, judge), settings, choice)

After section 4.1 of the Qwen3 technical report (arXiv 2505.09388). Queries are dropped that cannot
be verified, ask several questions, resemble validation items, or are answered correctly without
thinking. To the others answers with thinking are drawn, and filtered by `answer_rules.py` and the
query's verifier. The fewest that cover are taken (`choosing.py`), since this stage teaches the form
of thinking; correctness is learned later.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from data_prep.passages import Passages
from megatron_qwen3.fields import setting
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.building.asking import answers_to
from megatron_qwen3.posttrain.building.candidates import (
    NOT_ANSWERED,
    VERIFIER_FAILED,
    DrawSettings,
    answers_there,
    draw,
    taken_of,
)
from megatron_qwen3.posttrain.building.choosing import ChoiceSettings, PassedAnswer, choose
from megatron_qwen3.posttrain.building.fitting import fit
from megatron_qwen3.posttrain.building.flags import message_of
from megatron_qwen3.posttrain.building.judges import QUESTIONS, Judge
from megatron_qwen3.posttrain.building.queries import Query
from megatron_qwen3.posttrain.building.work import BuildWork
from megatron_qwen3.posttrain.generators.answers import Request
from megatron_qwen3.posttrain.generators.opened import AnyGenerator

_VERIFIED_AT_A_TIME = 512


@dataclass(frozen=True)
class QuerySettings:
    """Settings to select queries that need thinking."""

    direct_tries: int = setting(
        4, "answers without thinking, of which none may be right; 0 skips this test", at_least=0
    )
    direct_tokens: int = setting(4096, "tokens of such an answer", at_least=1)
    several_questions: bool = setting(False, "keep queries that ask several questions")

    def __post_init__(self) -> None:
        options.check(self)


@dataclass(frozen=True)
class ColdStartModels:
    """generator: answers with thinking; direct: without; judge: None without a judge."""

    generator: AnyGenerator
    direct: AnyGenerator
    judge: Judge | None = None


def build(
    work: BuildWork,
    queries: Sequence[Query],
    asked: ColdStartModels,
    settings: tuple[QuerySettings, DrawSettings, ChoiceSettings],
    passages: Passages | None,
) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
    """The rows of dialogs, and entries of the report besides `work.outcomes`."""
    of_queries, of_draws, of_choice = settings
    left = fit(work, queries, passages, is_verified=True, is_one=not of_queries.several_questions)
    left = _judged(work, left, asked.judge)
    left = _needing_thought(work, left, asked.direct, of_queries, of_draws)
    for query in left:
        work.outcomes.keep("query", query)

    def request(query: Query) -> Request:
        return of_draws.request(query, of_draws.samples, thinks=True)

    passed = draw(work, asked.generator, left, request, "answers with thinking")
    chosen = choose(passed, of_choice)
    if len(chosen) < len(passed):
        work.steps.say(
            f"note: of {len(passed):,} good answers {len(chosen):,} are taken: the settings "
            "per_query, cover, balance, most_samples and everything decide"
        )
    rows = (_row(work, asked.generator, passed[number], request) for number in chosen)
    return rows, {"taken": taken_of(passed, chosen), "judge": failures_of(asked.judge)}


def _judged(work: BuildWork, queries: Sequence[Query], judge: Judge | None) -> list[Query]:
    """The queries that the judge takes for one question with one answer."""
    if judge is None:
        return list(queries)
    kept, rulings = [], judge.questions(queries)
    for query in queries:
        ruling = rulings[query.id]
        if ruling.verdicts is None:
            work.drop_query(query, "judge failed", ruling.reason)
        elif not all(ruling.verdicts):
            noes = [q for q, yes in zip(QUESTIONS, ruling.verdicts, strict=True) if not yes]
            work.drop_query(query, "judged unfit", f"not so: {' '.join(noes)}")
        else:
            kept.append(query)
    return kept


def _needing_thought(
    work: BuildWork,
    queries: Sequence[Query],
    direct: AnyGenerator,
    settings: QuerySettings,
    of_draws: DrawSettings,
) -> list[Query]:
    """The queries to which none of several answers without thinking is right."""
    if not settings.direct_tries:
        return list(queries)

    def request(query: Query) -> Request:
        return Request(
            query.messages,
            query.tools or None,
            samples=settings.direct_tries,
            enable_thinking=False,
            max_tokens=settings.direct_tokens,
            seed=of_draws.seed_of(query),
        )

    title = "answers without thinking"
    counts, failures = answers_there(work, direct, queries, request, title)
    there = [q for q, n in zip(queries, counts, strict=True) if n == settings.direct_tries]
    for number in sorted(failures):
        work.drop_query(queries[number], NOT_ANSWERED, failures[number])
    kept = []
    for query, tries in _tried(work, direct, there, request):
        if tries.right:
            numbers = {"solved": tries.right, "tries": tries.answers}
            work.drop_query(query, "solved without thinking", "", **numbers)
        elif tries.failed == tries.answers:
            reason = f"none of {tries.answers} answers without thinking could be verified"
            work.drop_query(query, VERIFIER_FAILED, reason)
        else:
            kept.append(query)
    return kept


class _Tries(NamedTuple):
    """Counts of one query's answers without thinking: all, right, unverified."""

    answers: int
    right: int
    failed: int


def _tried(
    work: BuildWork,
    direct: AnyGenerator,
    queries: Sequence[Query],
    request_of: Callable[[Query], Request],
) -> Iterator[tuple[Query, _Tries]]:
    thought = failed = 0
    with work.steps.bar("answers without thinking: verified", len(queries)) as bar:
        for start in range(0, len(queries), _VERIFIED_AT_A_TIME):
            part = queries[start : start + _VERIFIED_AT_A_TIME]
            both = [(query, answers_to(direct, work.log, request_of(query))) for query in part]
            asked = [(query.verifier, answer.text) for query, own in both for answer in own]
            verdicts = iter(work.verifiers.judge(asked))
            for query, own in both:
                scores = [(next(verdicts).score, answer.thinking.strip()) for answer in own]
                # A model may think although asked not to: then it did not solve the query without
                # thinking.
                right = sum(score == 1 and not thinking for score, thinking in scores)
                tries = _Tries(len(own), right, sum(score is None for score, _ in scores))
                yield query, tries
                thought += sum(bool(thinking) for _, thinking in scores)
                failed += tries.failed
                bar.advance()
    if thought:
        work.steps.say(f"note: {thought:,} answers have thinking although none was asked for")
    if failed:
        work.steps.say(f"note: {failed:,} answers without thinking could not be verified")


def _row(
    work: BuildWork,
    generator: AnyGenerator,
    sample: PassedAnswer,
    request_of: Callable[[Query], Request],
) -> dict[str, Any]:
    query = sample.query
    answer = answers_to(generator, work.log, request_of(query))[sample.number]
    row = {
        "id": f"{query.id}/{sample.number}",
        "source": query.source,
        "domain": query.domain,
        "mode": "thinking",
        "messages": [*query.messages, message_of(answer, "thinking")],
    }
    return row | ({"tools": list(query.tools)} if query.tools else {})


def failures_of(judge: Judge | None) -> dict[str, int]:
    return dict(sorted(judge.failures.items())) if judge else {}
