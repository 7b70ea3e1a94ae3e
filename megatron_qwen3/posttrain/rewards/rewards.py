"""Rewards of rollouts: each answer's parts, their weighted sum, and the reasons.

    with Rewards(config, run_dir) as rewards:                 # on the first rank alone
        scored = rewards.score([(task, rollout, text), …], model_scores)
    scored[0].total, scored[0].parts["verifier"], scored[0].reasons["verifier"]
    rewards.unscored                # reasons of missing totals; rewards.alarm() warns

text: the model's whole text, decoded, with its thinking; task.set names the source in
[[rollouts.tasks]]. model_scores: the reward model's, which all ranks compute together beforehand,
since it is a model in their layout (`reward_model.RewardModel.score(rollouts)`); None where
rl.rewards, and every source, leaves it out.

The total is the sum of weight · part over the parts whose weight is not 0. Where one of these has
no score (a verifier ran out of time, a judge gave none) the total is None, and counted as missing:
a reward of 0 would mean that the answer is wrong. No answer can make this hang or raise: verifiers
are killed after their time, judges are asked a limited number of times, and a part that raises has
no score, with its reason.

A truncated answer is not known to be wrong. rl.truncated sets its reward: "masked" none, "zero" 0,
"scored" its parts' sum. A failed answer has no score. No torch.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from data_prep.languages import UNKNOWN, code_of
from megatron_qwen3.config import ConfigError
from megatron_qwen3.cores import cores
from megatron_qwen3.posttrain.evaluation.task import Task
from megatron_qwen3.posttrain.policy.penalties import overlong, repetition
from megatron_qwen3.posttrain.rewards import form, weights
from megatron_qwen3.posttrain.rewards.judge import AnswerJudge
from megatron_qwen3.posttrain.rollouts.rollout import ABORT, ERROR, Rollout
from megatron_qwen3.posttrain.verifiers import Verdict, Verifiers
from megatron_qwen3.posttrain.verifiers.judging import Judges
from megatron_qwen3.settings import Config

ROLLOUT = "rollout"  # in reasons: why no part was computed
TRUNCATED = "truncated"
UNSCORED_FRACTION = 0.01  # of answers, without truncated ones: above it, a warning
_FREE = ("format", "mode")  # parts that cost nothing: computed even without weight, for the report
_Part = tuple[float | None, str]  # a score, and the reason for it
Scored = tuple[Task, Rollout, str]


@dataclass(frozen=True)
class Reward:
    """total: None where it was not scored. parts: the computed ones, by name; reasons: why a part
    is below its best, or has no score; under `rollout`, why no part was computed."""

    total: float | None
    parts: Mapping[str, float | None] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


class Rewards:
    """Scores rollouts. scored: number of totals so far; unscored: number without one, by reason."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        verifiers: Judges | None = None,
        judge: AnswerJudge | None = None,
    ) -> None:
        """folder: of the run, for a judge's replies. verifiers, judge: used in place of those that
        the settings name; the caller enters them. ConfigError where weights, the judge's template
        or its address are wrong."""
        self._config, self._verifiers, self._judge = config, verifiers, judge
        self._default = weights.of_source(config.rl.rewards, ())
        self._by_source = {
            source.name: weights.of_source(config.rl.rewards, source.rewards)
            for source in config.rollouts.tasks
        }
        self._opening = ExitStack()
        self._own_judge: AnswerJudge | None = None
        if judge is None and config.rl.judge.url:
            self._own_judge = AnswerJudge(config.rl.judge, folder)
        self.scored, self.unscored = 0, Counter[str]()
        self._told = 0, Counter[str]()  # `scored` and `unscored` at the last alarm

    def __enter__(self) -> Self:
        if self._verifiers is None:
            workers = self._config.rl.verify_workers or cores()
            made = Verifiers(workers, self._config.rl.verify_seconds)
            self._verifiers = self._opening.enter_context(made)
        if self._own_judge is not None:
            self._judge = self._opening.enter_context(self._own_judge)
        return self

    def __exit__(self, *_: object) -> None:
        self._opening.close()

    def weights(self, task: Task) -> dict[str, float]:
        """The weight of each part for this task: its own, its source's, the run's."""
        return self._by_source.get(task.set, self._default) | dict(task.rewards)

    def check(self, task: Task) -> None:
        """ConfigError, in one line, where no answer to this task could be scored."""
        weight = self.weights(task)
        where = f"task {task.id} of {task.set}"
        if not any(weight.values()):
            raise ConfigError(f"{where}: all weights of its reward are 0")
        if weight["verifier"] and not task.verifier:
            raise ConfigError(
                f'{where} has no verifier; give its source rewards = ["verifier=0", "judge=1"], or '
                "its line a verifier"
            )
        if weight["language"] and task.language and code_of(task.language) == UNKNOWN:
            raise ConfigError(f"{where}: language = {task.language!r:.60} is no known language")
        if weight["judge"] and not (task.gold or task.checklist):
            raise ConfigError(f"{where} has neither gold nor checklist, which its judge needs")
        if weight["judge"] and self._judge is None and self._own_judge is None:
            raise ConfigError(f"{where} is scored by a judge; set rl.judge.url")
        if weight["model"] and not self._config.rl.judge.model:
            raise ConfigError(f"{where} is scored by a reward model; set rl.judge.model")

    def score(
        self, answered: Sequence[Scored], model_scores: Sequence[float | None] | None = None
    ) -> list[Reward]:
        """The reward of each rollout, in order. model_scores: one per rollout, if any."""
        settled = [self._settled(rollout) for _, rollout, _ in answered]
        found: dict[int, dict[str, _Part]] = {n: {} for n, one in enumerate(settled) if one is None}
        cleaned = {n: form.last_turn(answered[n][2], answered[n][1].turns) for n in found}
        self._verify(answered, cleaned, found)
        self._ask_judge(answered, cleaned, found)
        for n, parts in found.items():
            task, rollout, _ = answered[n]
            score = model_scores[n] if model_scores is not None else None
            parts |= self._alone(task, rollout, cleaned[n], score)
        made = [
            self._mixed(answered[n][0], found[n]) if one is None else one
            for n, one in enumerate(settled)
        ]
        self._count(made)
        return made

    def alarm(self) -> str:
        """A line where more than 1 % of the answers since the last call have no score, else ""."""
        (scored, before), self._told = self._told, (self.scored, Counter(self.unscored))
        reasons = self.unscored - before
        del reasons[TRUNCATED]
        failed, total = reasons.total(), self.scored - scored + reasons.total()
        if failed <= UNSCORED_FRACTION * total:
            return ""
        told = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common(4))
        return f"{failed:,} of {total:,} answers have no reward ({told})"

    def _settled(self, rollout: Rollout) -> Reward | None:
        """The reward of a rollout that needs no part; None for all others."""
        if rollout.finish in (ABORT, ERROR):
            reason = f"{rollout.finish}: {rollout.error}" if rollout.error else rollout.finish
            return Reward(None, {}, {ROLLOUT: reason})
        if not rollout.is_truncated or self._config.rl.truncated == "scored":
            return None
        total = 0.0 if self._config.rl.truncated == "zero" else None
        return Reward(total, {}, {ROLLOUT: TRUNCATED})

    def _verify(
        self,
        answered: Sequence[Scored],
        texts: Mapping[int, str],
        found: dict[int, dict[str, _Part]],
    ) -> None:
        asked: list[int] = []
        for n in found:
            if self.weights(answered[n][0])["verifier"]:
                found[n]["verifier"] = (None, "the task has no verifier")
                asked += [n] if answered[n][0].verifier else []
        if not asked:
            return
        assert self._verifiers is not None
        pairs = [(answered[n][0].verifier, texts[n]) for n in asked]
        try:
            verdicts = self._verifiers.judge(pairs)
        except Exception as error:  # of the machine, such as a failed fork
            verdicts = [Verdict(None, _told(error))] * len(pairs)
        for n, verdict in zip(asked, verdicts, strict=True):
            # A partial score could be won without an answer, by listing all candidates.
            score = None if verdict.score is None else float(verdict.score == 1.0)
            found[n]["verifier"] = (score, verdict.reason)

    def _ask_judge(
        self,
        answered: Sequence[Scored],
        texts: Mapping[int, str],
        found: dict[int, dict[str, _Part]],
    ) -> None:
        asked = [n for n in found if self.weights(answered[n][0])["judge"]]
        if not asked:
            return
        if self._judge is None:
            for n in asked:
                found[n]["judge"] = (None, "there is no judge")
            return
        scored: Sequence[_Part]
        try:
            scored = self._judge.score([(answered[n][0], texts[n]) for n in asked])
        except Exception as error:  # of the file system, or an unforeseen one of the endpoint
            scored = [(None, _told(error))] * len(asked)
        for n, part in zip(asked, scored, strict=True):
            found[n]["judge"] = part

    def _alone(
        self, task: Task, rollout: Rollout, text: str, model_score: float | None
    ) -> dict[str, _Part]:
        """The parts that need no other process; without weight, only those that cost nothing."""
        limit, settings = self._config.rollouts.max_new_tokens, self._config.rl
        said = [i for i, own in zip(rollout.tokens, rollout.sampled, strict=True) if own]
        makers: dict[str, Callable[[], _Part]] = {
            "model": lambda: (model_score, "" if model_score is not None else "no score"),
            "format": lambda: _holds(form.well_formed(text, rollout.thinking)),
            "mode": lambda: _holds(form.obedient(text, rollout.thinking)),
            "language": lambda: form.language_share(text, task.language, task.question),
            "overlong": lambda: (overlong(len(said), limit, settings.overlong_tokens), ""),
            "repetition": lambda: (repetition(said, settings.repeated), ""),
        }
        weight = self.weights(task)
        return {
            name: _tried(make) for name, make in makers.items() if weight[name] or name in _FREE
        }

    def _mixed(self, task: Task, parts: Mapping[str, _Part]) -> Reward:
        scores = {name: parts[name][0] for name in weights.PARTS if name in parts}
        reasons = {name: parts[name][1] for name in scores if parts[name][1]}
        total = 0.0
        for name, weight in self.weights(task).items():
            if not weight:
                continue
            score = scores[name]
            if score is None:
                return Reward(None, scores, reasons)
            total += weight * score
        return Reward(total, scores, reasons)

    def _count(self, made: Sequence[Reward]) -> None:
        for reward in made:
            if reward.total is not None:
                self.scored += 1
                continue
            missing = next((name for name, one in reward.parts.items() if one is None), ROLLOUT)
            kind = reward.reasons.get(missing, "").partition(":")[0]
            self.unscored[kind if missing == ROLLOUT else f"{missing}: {kind}"] += 1


def _holds(fault: str) -> _Part:
    return float(not fault), fault


def _tried(make: Callable[[], _Part]) -> _Part:
    try:
        score, reason = make()
        is_number = score is None or math.isfinite(score)
        return (score, reason) if is_number else (None, f"not finite: {score}")
    except Exception as error:  # a library may fail on a model's text
        return None, _told(error)


def _told(error: Exception) -> str:
    return f"error: {type(error).__name__}: {error}"[:300]
