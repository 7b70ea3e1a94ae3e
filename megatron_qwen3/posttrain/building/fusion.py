"""Builds the data that fuses both modes: `build(work, thinking, plain, asked, settings, passages)`.

After section 4.3 of the Qwen3 technical report (arXiv 2505.09388). Answers with thinking are drawn
from the model of the stage before, on the cold start's queries, and kept where the verifier accepts
them: so the model keeps its way of thinking. Answers without thinking are to other queries (code,
mathematics, instructions, translation, writing, roles), drawn from the same model or another, and
graded by the query's verifier, or by a judge with a checklist made for the query. Then `flags.py`
makes dialogs of both.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_prep.passages import Passages
from megatron_qwen3.config import ConfigError
from megatron_qwen3.fields import setting
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.building.asking import answers_to
from megatron_qwen3.posttrain.building.candidates import DrawSettings, draw, drop_answer
from megatron_qwen3.posttrain.building.choosing import ChoiceSettings, PassedAnswer, choose
from megatron_qwen3.posttrain.building.cold_start import failures_of
from megatron_qwen3.posttrain.building.fitting import fit
from megatron_qwen3.posttrain.building.flags import Answered, FlagSettings, Mode, fused
from megatron_qwen3.posttrain.building.judges import Judge, Ruling
from megatron_qwen3.posttrain.building.queries import Query
from megatron_qwen3.posttrain.building.work import BuildWork
from megatron_qwen3.posttrain.generators.answers import Request
from megatron_qwen3.posttrain.generators.opened import AnyGenerator


@dataclass(frozen=True)
class FusionSettings:
    """Shares of the two kinds of answers, and how those without thinking are graded."""

    thinking_share: float = setting(
        0.5, "share of thinking samples, where there are enough", above=0, at_most=1
    )
    plain_samples: int = setting(4, "answers without thinking to each query", at_least=1)
    plain_tokens: int = setting(8192, "tokens of such an answer", at_least=1)
    plain_shares: tuple[str, ...] = setting(
        (),
        "domains of samples without thinking: code=0.3 writing=0.2; others share the rest",
        metavar="DOMAIN=SHARE",
    )
    checklist_share: float = setting(
        0.8, "share of its checklist that an answer must meet", above=0, at_most=1
    )
    rules_alone: bool = setting(
        False, "keep answers that no verifier and no judge grades, where rules find no fault"
    )

    def __post_init__(self) -> None:
        options.check(self)
        shares_of(self.plain_shares)


@dataclass(frozen=True)
class FusionModels:
    """generator: answers with thinking; plain: without; judge: None without a judge."""

    generator: AnyGenerator
    plain: AnyGenerator
    judge: Judge | None = None


def build(
    work: BuildWork,
    thinking: Sequence[Query],
    plain: Sequence[Query],
    asked: FusionModels,
    settings: tuple[FusionSettings, DrawSettings, FlagSettings],
    passages: Passages | None,
) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
    """The rows of dialogs, and entries of the report besides `work.outcomes`."""
    of_fusion, of_draws, of_flags = settings
    thought = _thought(work, thinking, asked.generator, of_draws, passages)
    answered = _plain(work, plain, asked, of_fusion, of_draws, passages)
    counts = {"thinking": len(thought), "plain": len(answered)}
    answered = _shared(answered, shares_of(of_fusion.plain_shares), of_flags.seed)
    thought, answered = _in_ratio(thought, answered, of_fusion.thinking_share, of_flags.seed)
    if not (thought and answered) and of_fusion.thinking_share < 1:
        work.steps.say(
            f"note: {counts['thinking']:,} answers with thinking and {counts['plain']:,} without "
            f"it passed, so thinking_share = {of_fusion.thinking_share:g} leaves none"
        )
    taken = {"thinking": len(thought), "plain": len(answered)}
    if thought and taken != counts:
        also = " and plain_shares" if of_fusion.plain_shares else ""
        work.steps.say(
            f"note: of {counts['thinking']:,} good answers with thinking {taken['thinking']:,} are "
            f"taken, of {counts['plain']:,} without it {taken['plain']:,}, as "
            f"thinking_share = {of_fusion.thinking_share:g}{also} ask"
        )
    about = {
        "there were": counts,
        "taken": taken,
        "judge": failures_of(asked.judge),
    }
    return fused([*thought, *answered], of_flags), about


def _thought(
    work: BuildWork,
    queries: Sequence[Query],
    generator: AnyGenerator,
    of_draws: DrawSettings,
    passages: Passages | None,
) -> list[Answered]:
    """One right answer with thinking to each query that has one."""
    left = fit(work, queries, passages, is_verified=True, is_one=False)
    for query in left:
        work.outcomes.keep("query", query)
    return best_of(work, generator, left, of_draws, thinks=True)


def _plain(
    work: BuildWork,
    queries: Sequence[Query],
    asked: FusionModels,
    settings: FusionSettings,
    of_draws: DrawSettings,
    passages: Passages | None,
) -> list[Answered]:
    """One graded answer without thinking to each query that has one."""
    left = fit(work, queries, passages, is_verified=False, is_one=False)
    of_plain = replace(of_draws, samples=settings.plain_samples, max_tokens=settings.plain_tokens)
    by_rules = [query for query in left if query.verifier or settings.rules_alone]
    others = [query for query in left if not (query.verifier or settings.rules_alone)]
    if asked.judge is None:
        for query in others:
            work.drop_query(query, "nothing grades it", "no verifier, no judge, no --rules-alone")
        others = []
    for query in by_rules:
        work.outcomes.keep("query", query)
    found = best_of(work, asked.plain, by_rules, of_plain, thinks=False)
    if asked.judge is not None and others:
        found += _graded(work, others, asked.plain, asked.judge, settings, of_plain)
    return found


def _graded(
    work: BuildWork,
    queries: Sequence[Query],
    generator: AnyGenerator,
    judge: Judge,
    settings: FusionSettings,
    of_plain: DrawSettings,
) -> list[Answered]:
    """For each query, the answer that passes the rules and meets most of the checklist."""
    checklists = judge.checklists(queries)
    left = []
    for query in queries:
        if checklists[query.id]:
            work.outcomes.keep("query", query)
            left.append(query)
        else:
            work.drop_query(query, "judge failed", "it made no checklist")

    def request(query: Query) -> Request:
        return of_plain.request(query, of_plain.samples, thinks=False)

    passed = draw(work, generator, left, request, "answers to be graded", is_final=False)
    answers = [answers_to(generator, work.log, request(s.query))[s.number] for s in passed]
    rulings = judge.grade(
        [(s.query, a, checklists[s.query.id]) for s, a in zip(passed, answers, strict=True)]
    )
    good: list[PassedAnswer] = []
    for sample, answer, ruling in zip(passed, answers, rulings, strict=True):
        numbers = {**sample.numbers, "checklist": ruling.share or 0.0}
        if ruling.share is None:
            drop_answer(work, sample.query, answer, [("judge failed", ruling.reason)], {})
        elif ruling.share < settings.checklist_share:
            noes = _missed(checklists[sample.query.id], ruling)
            drop_answer(work, sample.query, answer, [("checklist not met", noes)], numbers)
        else:
            work.outcomes.keep("answer", sample.query, numbers)
            good.append(replace(sample, grade=ruling.share))
    chosen = choose(good, ChoiceSettings(everything=True))
    return [_answered(work, generator, good[n], of_plain, thinks=False) for n in chosen]


def _missed(checklist: Sequence[str], ruling: Ruling) -> str:
    done = ruling.verdicts or ()
    return " ".join(item for item, yes in zip(checklist, done, strict=True) if not yes)


def best_of(
    work: BuildWork,
    generator: AnyGenerator,
    queries: Sequence[Query],
    of_draws: DrawSettings,
    thinks: bool,
    per_query: int = 1,
) -> list[Answered]:
    """Answers that pass, those of middle length first, at most `per_query` of a query."""
    title = "answers with thinking" if thinks else "answers without thinking"
    passed = draw(
        work, generator, queries, lambda q: of_draws.request(q, of_draws.samples, thinks), title
    )
    chosen = choose(passed, ChoiceSettings(per_query=per_query, everything=True))
    return [_answered(work, generator, passed[n], of_draws, thinks) for n in chosen]


def _answered(
    work: BuildWork,
    generator: AnyGenerator,
    sample: PassedAnswer,
    of_draws: DrawSettings,
    thinks: bool,
) -> Answered:
    mode: Mode = "thinking" if thinks else "non-thinking"
    request = of_draws.request(sample.query, of_draws.samples, thinks)
    return Answered(
        sample.query,
        mode,
        lambda: answers_to(generator, work.log, request)[sample.number],
        sample.number,
    )


def _in_ratio(
    thought: list[Answered], plain: list[Answered], share: float, seed: int
) -> tuple[list[Answered], list[Answered]]:
    """Both kinds in the given ratio; surplus samples of one kind are dropped by lot."""
    if share == 1:
        return thought, []
    most_thought = round(len(plain) * share / (1 - share))
    most_plain = round(len(thought) * (1 - share) / share)
    return _by_lot(thought, most_thought, seed), _by_lot(plain, most_plain, seed)


def _shared(samples: list[Answered], shares: Mapping[str, float], seed: int) -> list[Answered]:
    """As many samples as possible with each named domain at its share, others at the rest."""
    if not shares:
        return samples
    wanted = {**shares, "": 1 - sum(shares.values())}
    of_domain: dict[str, list[Answered]] = defaultdict(list)
    for sample in samples:
        domain = sample.query.domain
        of_domain[domain if domain in shares else ""].append(sample)
    if lacking := [n for n, share in wanted.items() if share > 1e-9 and not of_domain[n]]:
        named = ", ".join(name or "any that is not named" for name in lacking)
        raise ConfigError(
            f"plain_shares give {', '.join(f'{wanted[n]:g}' for n in lacking)} to domain {named}, "
            "of which no answer passed; leave it out, or give more queries of it"
        )
    there = {name: len(of_domain[name]) for name in wanted}
    total = min((there[n] / share for n, share in wanted.items() if share > 1e-9), default=0)
    taken: list[Answered] = []
    for name, share in wanted.items():
        taken += _by_lot(of_domain[name], round(total * share), seed)
    return taken


def _by_lot(samples: list[Answered], most: int, seed: int) -> list[Answered]:
    """`most` samples, drawn by their names: a larger draw contains a smaller one."""
    lots = sorted(samples, key=lambda s: hashlib.sha256(f"{seed}/{s.key}".encode()).hexdigest())
    return lots[:most]


def shares_of(words: Sequence[str]) -> dict[str, float]:
    """Shares by domain. ConfigError where a word is not DOMAIN=SHARE, or they exceed 1."""
    shares: dict[str, float] = {}
    for word in words:
        domain, _, text = word.rpartition("=")
        try:
            shares[domain] = float(text)
        except ValueError:
            shares[domain] = -1.0
        if not domain or not 0 <= shares[domain] <= 1:
            raise ConfigError(f"plain_shares: {word!r} is not DOMAIN=SHARE, of 0 to 1")
    if sum(shares.values()) > 1 + 1e-9:
        raise ConfigError(f"plain_shares add up to {sum(shares.values()):g}; valid: 1 at most")
    return shares
