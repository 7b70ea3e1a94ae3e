"""Scores answers by a judge: another model, at an endpoint, with the right answer or a checklist.

    with AnswerJudge(config.rl.judge, folder) as judge:
        judge.score([(task, answer), …])          # (0.0 to 1.0, ""), or (None, why not), in order

The prompt is a template, the project's (`judge_prompt.txt`) or rl.judge.template, with the places
{question}, {reference}, {checklist}, {answer} and {word}. Each text is placed as one JSON string
without < and >: whatever an answer contains ("Score: 10", a tag of the template, "END") stays
within its quotation marks, and its own {places} stay text. The reply must be one JSON object with
the word, which no answer can know (generators/judged.py), and a score of 0 to 10. Otherwise the
judge is asked again, rl.judge.replies times in all; then there is no score. The newest replies are
stored on disk by the content of the request: a resumed run pays for no request twice, and has the
same scores.

After _MOST_FAILURES failures in a row an endpoint gets no more requests of this batch. No answer
and no reply raises an error here, and nothing imports torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Self

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.building.answer_log import key_of
from megatron_qwen3.posttrain.evaluation.task import Task
from megatron_qwen3.posttrain.generators.answers import Answer, Request
from megatron_qwen3.posttrain.generators.endpoint import Endpoint, Named
from megatron_qwen3.posttrain.generators.judged import Failed, read, word_of
from megatron_qwen3.posttrain.generators.opened import AnyGenerator
from megatron_qwen3.posttrain.generators.settings import EndpointLimits
from megatron_qwen3.posttrain.rewards.kept_replies import KeptReplies
from megatron_qwen3.posttrain.verifiers.final import after_thinking
from megatron_qwen3.settings_rl import JudgeConfig

REPLIES_FILE = "judge.jsonl"
_TEMPLATE = Path(__file__).with_name("judge_prompt.txt")
_PLACE = re.compile(r"\{(question|reference|checklist|answer|word)\}")
_BEST = 10
_MOST_FAILURES = 32  # failed requests in a row
_MOST_BYTES = 512 << 20  # of stored replies
_CHECK_SECONDS = 60.0  # for one word, thinking included
_ESCAPED = {ord(c): f"\\u{ord(c):04x}" for c in "<>\u0085\u2028\u2029"}


class Scored(NamedTuple):
    """score: 0.0 to 1.0; None without a valid verdict. reason: explains either."""

    score: float | None
    reason: str


class AnswerJudge:
    """A context manager. ConfigError, on making or entering it: a wrong template or endpoint."""

    def __init__(
        self,
        settings: JudgeConfig,
        folder: Path,
        generator: AbstractContextManager[AnyGenerator] | None = None,
    ) -> None:
        """folder: for stored replies; generator: used in place of the endpoint."""
        self._settings, self._folder = settings, folder
        self._template = read_template(settings.template)
        self._generating = generator or _endpoint(settings, settings.seconds)

    def __enter__(self) -> Self:
        with ExitStack() as opened:  # closes the parts opened so far after an error
            self._generator = opened.enter_context(self._generating)
            self._folder.mkdir(parents=True, exist_ok=True)
            kept = KeptReplies(self._folder / REPLIES_FILE, _MOST_BYTES)
            self._log = opened.enter_context(kept)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def score(self, asked: Sequence[tuple[Task, str]]) -> list[Scored]:
        """The score of each answer, given with its thinking, to a task with gold or a checklist."""
        found: list[Any] = [_settled(task, text) for task, text in asked]
        prompts = [_Prompt.of(self._template, task, text) for task, text in asked]
        left = [n for n, settled in enumerate(found) if settled is None]
        for turn in range(self._settings.replies):
            requests = [self._request(prompts[n].text, turn) for n in left]
            replies = self._answers(requests)
            for n, (answers, error) in zip(left, replies, strict=True):
                found[n] = read(answers, error, prompts[n].word, _score)
            left = [n for n in left if isinstance(found[n], Failed) and found[n].is_reply]
        return [Scored(None, one.reason) if isinstance(one, Failed) else one for one in found]

    def _request(self, prompt: str, turn: int) -> Request:
        return Request(
            [{"role": "user", "content": prompt}], max_tokens=self._settings.max_tokens, seed=turn
        )

    def _answers(self, requests: Sequence[Request]) -> list[tuple[list[Answer], str]]:
        """The reply to each request, stored or new, or why there is none."""
        keys = [key_of(self._generator.label, request) for request in requests]
        found: dict[str, tuple[list[Answer], str]] = {
            key: (kept, "") for key in keys if (kept := self._log.answers(key))
        }
        missing = list(dict.fromkeys(key for key in keys if key not in found))
        by_key = dict(zip(keys, requests, strict=True))
        in_a_row = 0
        asking = self._generator.answers(by_key[key] for key in missing)
        for number, answers in asking if missing else ():
            found[missing[number]] = self._kept(missing[number], answers)
            in_a_row = 0 if found[missing[number]][0] else in_a_row + 1
            if in_a_row >= _MOST_FAILURES:
                break
        given_up = ([], f"given up: {in_a_row} requests in a row failed")
        return [found.get(key, given_up) for key in keys]

    def _kept(self, key: str, answers: Sequence[Answer]) -> tuple[list[Answer], str]:
        """Store the good answers if the disk allows it; returns them, and the error of a failed
        one."""
        good = [answer for answer in answers if answer.finish != "error"]
        try:
            self._log.add(key, good)
        except OSError:
            return good, ""  # with a full disk the next run repeats the request
        return good, "" if good else next((a.error for a in answers), "no answer")


def check(settings: JudgeConfig) -> None:
    """Send the judge one request before anything is sampled. ConfigError, in a line that names the
    setting, where it does not answer."""
    question = [{"role": "user", "content": "Reply with the one word: ready"}]
    with _endpoint(settings, min(settings.seconds, _CHECK_SECONDS)) as judge:
        judge.check(Request(question, max_tokens=settings.max_tokens))


def _endpoint(settings: JudgeConfig, seconds: float) -> Endpoint:
    limits = EndpointLimits(
        concurrency=settings.concurrency,
        tries=settings.tries,
        seconds=seconds,
        key_variable=settings.key_variable,
    )
    name = f"{settings.url}#{settings.name}" if settings.name else settings.url
    named = Named("rl.judge.url", "rl.judge.name", "rl.judge.key_variable")
    return Endpoint(name, limits, named)


class _Prompt(NamedTuple):
    text: str
    word: str

    @classmethod
    def of(cls, template: str, task: Task, text: str) -> _Prompt:
        """The template with one answer's texts in its places, substituted all at once."""
        quoted = {
            "question": task.question,
            "reference": after_thinking(task.gold) or "",
            "checklist": "\n".join(f"- {line}" for line in task.checklist),
            "answer": after_thinking(text) or "",
        }
        word = word_of(quoted)
        placed = {name: quote(text) if text else "null" for name, text in quoted.items()}
        placed["word"] = word
        return cls(_PLACE.sub(lambda match: placed[match.group(1)], template), word)


def quote(text: str) -> str:
    """The text as one JSON string, on one line, without < and >."""
    return json.dumps(text, ensure_ascii=False).translate(_ESCAPED)


def read_template(path: str) -> str:
    """The template of rl.judge.template, or the project's. ConfigError where it is invalid."""
    file = Path(path) if path else _TEMPLATE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"rl.judge.template = {path}: cannot be read ({error})") from None
    places = set(_PLACE.findall(text))
    if missing := {"answer", "word"} - places:
        raise ConfigError(
            f"rl.judge.template = {path} has no place {{{sorted(missing)[0]}}}; it needs "
            "{answer} and {word}, and one of {reference} and {checklist}"
        )
    if not places & {"reference", "checklist"}:
        raise ConfigError(
            f"rl.judge.template = {path} has neither {{reference}} nor {{checklist}}: its judge "
            "would know nothing to compare with"
        )
    return text


def _settled(task: Task, text: str) -> Scored | Failed | None:
    """The result where no judge is needed: no answer, or a task without a reference."""
    if not (task.gold or task.checklist):
        return Failed("the task has neither gold nor checklist", is_reply=False)
    answer = after_thinking(text)
    if answer is None:
        return Scored(0.0, "the answer never left its thinking")
    return None if answer.strip() else Scored(0.0, "the answer is empty")


def _score(row: Mapping[str, Any]) -> Scored | None:
    score = row.get("score")
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    if set(row) != {"word", "score"} or not is_number or not 0 <= score <= _BEST:  # type: ignore[operator]
        return None
    return Scored(float(score) / _BEST, f"scored {score:g} of {_BEST}")  # type: ignore[arg-type]
