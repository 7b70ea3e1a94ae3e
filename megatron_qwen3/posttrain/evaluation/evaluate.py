"""Asks a model every task under every condition, verifies the answers, and counts.

    with AnswerLog(out / "answers.jsonl") as log, Verifiers() as verifiers:
        found = Evaluation(generator, log, verifiers, steps, count_tokens).run(tasks, settings)
    found.content            # for results.json; found.samples: one row for each answer
    rows(found.samples, log)                    # for samples.jsonl: with the texts

Answers are stored as they arrive, so that the same command resumes after a stop; verification is
repeated, since it costs little. An answer that could not be judged is counted and left out of
pass@k; a request that failed after all retries is sent again by the same command.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from megatron_qwen3.chat import split_thinking
from megatron_qwen3.config import ConfigError
from megatron_qwen3.fields import setting
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.building.answer_log import AnswerLog, key_of
from megatron_qwen3.posttrain.building.asking import answers_to, ask
from megatron_qwen3.posttrain.building.steps import Steps
from megatron_qwen3.posttrain.evaluation import budgets, conditions, estimates
from megatron_qwen3.posttrain.evaluation.conditions import MODES, Condition, FlaggedDialog
from megatron_qwen3.posttrain.evaluation.task import Task
from megatron_qwen3.posttrain.evaluation.tasks import ALL
from megatron_qwen3.posttrain.generators.answers import OWN, Answer, Request, said
from megatron_qwen3.posttrain.generators.opened import AnyGenerator
from megatron_qwen3.posttrain.verifiers import verdict
from megatron_qwen3.posttrain.verifiers.judging import Judges

_EXAMPLES = 8
_AT_A_TIME = 256  # answers that are verified together
TRUNCATED_ALARM = 0.05  # of answers that the limit of tokens cut
_DISOBEYED = 0.01  # of answers in another mode than asked for, or over the budget
_SLACK = 1.1, 64  # factor and tokens on top of a budget, for the words that end thinking
_LONG_TOKENS = 10  # characters per token, more than texts have on average
_OF_FLAGS = "flags"


@dataclass(frozen=True)
class EvaluationSettings:
    """The samples of each task and their sampling settings."""

    samples: int = setting(1, "answers to each task in each mode", at_least=1)
    modes: tuple[str, ...] = setting(MODES, f"of {' and '.join(MODES)}", metavar="MODE")
    budgets: tuple[int, ...] = setting(
        (), "tokens of thinking at most: thinking is asked again with each", metavar="N"
    )
    obedience: int = setting(0, "dialogs that test obedience to flags", at_least=0)
    max_tokens: int = setting(4096, "tokens of an answer, thinking included", at_least=1)
    temperature: float = setting(OWN, "-1: Qwen3's, or the endpoint's own")
    top_p: float = setting(OWN, "-1: Qwen3's, or the endpoint's own")
    top_k: int = setting(OWN, "-1: Qwen3's, or the endpoint's own")
    seed: int = setting(0, "seed of answers and dialogs", at_least=0)

    def __post_init__(self) -> None:
        options.check(self)
        Sampling(**said(self))
        if unknown := set(self.modes) - set(MODES):
            raise ConfigError(f"modes = {sorted(unknown)[0]}; valid: {', '.join(MODES)}")
        budgets.check(self.budgets, self.max_tokens)

    def request(self, messages: Sequence[Mapping[str, Any]], name: str, **more: Any) -> Request:
        """A request with these settings; its seed depends on the name."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode("utf-8", "replace")).digest()
        return Request(
            messages,
            max_tokens=self.max_tokens,
            seed=int.from_bytes(digest[:4], "big") >> 1,
            **said(self),
            **more,
        )


@dataclass
class EvaluatedAnswer:
    """One answer. key, number: its place in answers.jsonl; lengths: of thinking, without the text
    that a budget inserted, and of the rest, in the unit of the evaluation."""

    condition: str
    set: str
    task: str
    key: str
    number: int
    score: float | None
    reason: str
    is_cut: bool
    thinking_length: int
    answer_length: int


@dataclass
class EvaluationResult:
    """content: of results.json. samples: every answer, for samples.jsonl. examples: a few answers,
    with their questions, by score: 1.0, 0.0, or None where the verifier could not judge."""

    content: dict[str, Any] = field(default_factory=dict)
    samples: list[EvaluatedAnswer] = field(default_factory=list)
    examples: dict[float | None, list[dict[str, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, sample: EvaluatedAnswer, task: Task, text: str) -> None:
        self.samples.append(sample)
        score = None if sample.score is None else float(sample.score == 1)
        examples = self.examples[score]
        if len(examples) < _EXAMPLES:
            name = f"{sample.condition}, {sample.set}, {sample.task}: {sample.reason or 'right'}"
            asked = str(task.messages[-1]["content"])
            examples.append({"name": name, "asked": asked, "text": text})


@dataclass
class Evaluation:
    """count: length of a text, in `unit`."""

    generator: AnyGenerator
    log: AnswerLog
    verifiers: Judges
    steps: Steps
    count: Callable[[str], int] = len
    unit: str = "characters"

    def run(self, tasks: Sequence[Task], settings: EvaluationSettings) -> EvaluationResult:
        """Run all conditions, then the dialogs with flags if the settings ask for them."""
        found, failed = EvaluationResult(), Counter[str]()
        rows: list[dict[str, Any]] = []
        count = self.count if self.unit == "tokens" else None
        cramped = list(budgets.cramped(settings.budgets, settings.max_tokens, count))
        for line in cramped:
            self.steps.say(f"note: {line}")
        for condition in conditions.conditions(settings.modes, settings.budgets):
            before = len(found.samples)
            failed.update(self._condition(condition, tasks, settings, found))
            rows += _rows(condition, tasks, found.samples[before:], settings.samples)
        obedience = self._obedience(tasks, settings, failed) if settings.obedience else None
        found.content = {
            "version": 1,
            "model": self.generator.label,
            "tasks": dict(Counter(task.set for task in tasks)),
            "conditions": rows,
            "obedience": obedience,
            "failures": dict(failed),
            "alarm": self.verifiers.alarm(),
            "notes": [
                *cramped,
                *_cut(rows),
                *_disobeyed(rows, found.samples, self.unit),
                *self.log.notes(self.generator.label),
            ],
            "unit": self.unit,
        }
        return found

    def _condition(
        self,
        condition: Condition,
        tasks: Sequence[Task],
        settings: EvaluationSettings,
        found: EvaluationResult,
    ) -> Counter[str]:
        """Ask and verify; returns the reasons of unanswered requests."""
        requests = [
            settings.request(
                task.messages,
                f"{task.set}/{task.id}",
                tools=task.tools or None,
                samples=settings.samples,
                enable_thinking=condition.thinks,
                thinking_budget=condition.budget,
            )
            for task in tasks
        ]
        failures = ask(self.generator, self.log, requests, self.steps, condition.name)
        size = max(1, _AT_A_TIME // settings.samples)
        for start in range(0, len(tasks), size):
            part = slice(start, start + size)
            self._judge(condition, tasks[part], requests[part], found)
        return Counter(failures.values())

    def _judge(
        self,
        condition: Condition,
        tasks: Sequence[Task],
        requests: Sequence[Request],
        found: EvaluationResult,
    ) -> None:
        answered = [
            (task, key_of(self.generator.label, request), number, answer)
            for task, request in zip(tasks, requests, strict=True)
            for number, answer in enumerate(answers_to(self.generator, self.log, request))
        ]
        pairs = [(task.verifier, answer.text) for task, *_, answer in answered]
        verdicts = self.verifiers.judge(pairs)
        for (task, key, number, answer), judged in zip(answered, verdicts, strict=True):
            thinking, rest = split_thinking(answer.text)
            if condition.budget is not None:
                thinking = budgets.without_inserted(thinking)
            sample = EvaluatedAnswer(
                condition.name,
                task.set,
                task.id,
                key,
                number,
                judged.score,
                judged.reason,
                answer.finish == "length",
                self.count(thinking) if thinking else 0,
                self.count(rest) if rest else 0,
            )
            found.add(sample, task, answer.text)

    def _obedience(
        self, tasks: Sequence[Task], settings: EvaluationSettings, failed: Counter[str]
    ) -> dict[str, Any]:
        """How often the last flag decided: rates by requested mode and by number of queries."""
        made = conditions.dialogs(tasks, settings.obedience, settings.seed)
        requests = [
            settings.request(dialog.messages, f"{_OF_FLAGS}/{number}")
            for number, dialog in enumerate(made)
        ]
        failures = ask(self.generator, self.log, requests, self.steps, _OF_FLAGS)
        failed.update(failures.values())
        answers = [answers_to(self.generator, self.log, request) for request in requests]
        pairs = [(dialog, one[0]) for dialog, one in zip(made, answers, strict=True) if one]
        groups: dict[str, list[tuple[FlaggedDialog, Answer]]] = defaultdict(list)
        for pair in pairs:
            mode = conditions.THINKING if pair[0].thinks else conditions.NOT_THINKING
            queries = f"{pair[0].turns} {'query' if pair[0].turns == 1 else 'queries'}"
            for name in (ALL, mode, queries):
                groups[name].append(pair)
        names = sorted(groups, key=lambda name: (name != ALL, name))
        rows = {name: _obeyed(groups[name]) for name in names}
        return {"dialogs": len(made), "answered": len(pairs), "groups": rows}


def rows(samples: Iterable[EvaluatedAnswer], log: AnswerLog) -> Iterator[dict[str, Any]]:
    """Rows of the samples, in order, with thinking and answer from the log."""
    key, answers = "", []
    for sample in samples:
        if sample.key != key:
            key, answers = sample.key, log.answers(sample.key)
        answer = answers[sample.number]
        yield asdict(sample) | {"thinking": answer.thinking, "answer": answer.content}


def _obeyed(pairs: Sequence[tuple[FlaggedDialog, Answer]]) -> dict[str, Any]:
    """obeys: there is thinking where it was requested, and none otherwise; well_formed: moreover
    the think block is closed, single and followed by an answer."""
    obeys, formed = [], []
    for dialog, answer in pairs:
        has_thinking = bool(split_thinking(answer.text)[0].strip())
        obeys.append(float(has_thinking == dialog.thinks))
        mode = "think" if dialog.thinks else "no_think"
        judged = verdict({"kind": "think_format", "mode": mode}, answer.text)
        formed.append(float(judged.score == 1))
    return {"obeys": _interval(obeys), "well_formed": _interval(formed)}


def _rows(
    condition: Condition, tasks: Sequence[Task], samples: Sequence[EvaluatedAnswer], asked: int
) -> Iterator[dict[str, Any]]:
    """The results of a condition: over all sets, and for each where there are several."""
    sets = list(dict.fromkeys(task.set for task in tasks))
    for name in [ALL, *(sets if len(sets) > 1 else [])]:
        ids = {(task.set, task.id) for task in tasks if name in (ALL, task.set)}
        mine = [sample for sample in samples if (sample.set, sample.task) in ids]
        yield {
            "condition": condition.name,
            "mode": condition.mode,
            "budget": condition.budget,
            "set": name,
            "tasks": len(ids),
            "samples": len(mine),
            "unanswered": len(ids) * asked - len(mine),
            "not_judged": sum(sample.score is None for sample in mine),
            "pass": _passes(mine, asked),
            "truncated": _share_cut(mine),
            "thinking": _lengths([sample.thinking_length for sample in mine]),
            "answer": _lengths([sample.answer_length for sample in mine]),
        }


def _passes(samples: Sequence[EvaluatedAnswer], asked: int) -> dict[str, Any]:
    """pass@k for k = 1, 2, 4, … and the number of requested samples; tasks with fewer judged
    samples are left out."""
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for sample in samples:
        if sample.score is not None:
            scores[sample.set, sample.task].append(sample.score)
    found: dict[str, Any] = {}
    for k in sorted({asked, *(1 << power for power in range(asked.bit_length()))}):
        values = [
            estimates.pass_at_k(len(row), sum(score == 1 for score in row), k)
            for row in scores.values()
            if len(row) >= k
        ]
        if k <= asked and values:
            found[str(k)] = _interval(values)
    return found


def _interval(values: Sequence[float]) -> dict[str, float] | None:
    found = estimates.estimate(values)
    return None if found is None else found._asdict()


def _share_cut(samples: Sequence[EvaluatedAnswer]) -> dict[str, float] | None:
    """The share of truncated answers: of each task, averaged over tasks."""
    cut: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for sample in samples:
        cut[sample.set, sample.task].append(sample.is_cut)
    return _interval([sum(flags) / len(flags) for flags in cut.values()])


def _lengths(lengths: Sequence[int]) -> dict[str, Any] | None:
    """Mean, quantiles, and counts between successive powers of two."""
    if not lengths:
        return None
    low, middle, high = np.quantile(lengths, (0.1, 0.5, 0.9))
    ranges = Counter(1 << (length.bit_length() - 1) if length else 0 for length in lengths)
    return {
        "mean": float(np.mean(lengths)),
        "p10": float(low),
        "median": float(middle),
        "p90": float(high),
        "ranges": sorted(ranges.items()),
    }


def _cut(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        share = row["truncated"]["value"] if row["truncated"] else 0.0
        if row["set"] == ALL and share > TRUNCATED_ALARM:
            yield f"{row['condition']}: {100 * share:.1f} % of the answers were cut by max_tokens"


def _disobeyed(
    rows: Sequence[Mapping[str, Any]], samples: Sequence[EvaluatedAnswer], unit: str
) -> Iterator[str]:
    """Warnings on conditions that the model did not follow, so that their results mislead."""
    for row in rows:
        mine = [sample for sample in samples if sample.condition == row["condition"]]
        if row["set"] != ALL or not mine:
            continue
        if row["mode"] == conditions.NOT_THINKING:
            count, told = sum(sample.thinking_length > 0 for sample in mine), "have thinking"
        elif row["budget"] is not None:
            most = _most(row["budget"], unit)
            count = sum(sample.thinking_length > most for sample in mine)
            told = f"have more thinking than {row['budget']:,} tokens"
        else:
            continue
        if count > _DISOBEYED * len(mine):
            yield f"{row['condition']}: {count:,} of {len(mine):,} answers {told}"


def _most(budget: int, unit: str) -> float:
    """The greatest length of thinking within a budget of tokens."""
    most = budget * _SLACK[0] + _SLACK[1]
    return most if unit == "tokens" else most * _LONG_TOKENS
