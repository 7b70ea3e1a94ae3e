"""Makes a batch of rollouts on the first rank: asks, rewards, filters, refills, and records it.

    batch = RolloutBatch(config, number, step, before, asker, decode, rewards)
    asks = batch.begin()
    while asks:
        asks = batch.take(engine.sample(asks))      # rewards answers; returns further asks
    record = batch.record(entropies)

A group teaches nothing where its rewards are all equal or fewer than two: it is not trained, and
another task is asked in its place, up to rl.refills times. The record has all groups: rates and
lengths are of all that was sampled, not only of the trained part. No torch here.

Legend: N rollouts, P parts of a reward.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from megatron_qwen3.posttrain.policy.advantages import advantages, teaches
from megatron_qwen3.posttrain.policy.entropy_band import next_coefficient
from megatron_qwen3.posttrain.rewards.rewards import Reward, Rewards
from megatron_qwen3.posttrain.rewards.weights import PARTS
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.asking import Asker, DrawnTask, TaskOutcome
from megatron_qwen3.posttrain.rollouts.record import Array, RolloutRecord
from megatron_qwen3.posttrain.rollouts.rollout import ABORT, ERROR, STOP, Ask, Rollout
from megatron_qwen3.posttrain.watching.samples import SHOWN_GROUPS, pieces_of
from megatron_qwen3.settings import Config

NEARLY_ALL = 0.9  # a reason must hold for this share of answers to be given for an empty batch


class Group(NamedTuple):
    """A task's answers and their rewards."""

    drawn: DrawnTask
    rollouts: Sequence[Rollout]
    texts: Sequence[str]
    rewards: Sequence[Reward]

    @property
    def totals(self) -> Array:
        """Each answer's reward, float64, NaN where not scored."""
        return np.array([np.nan if r.total is None else r.total for r in self.rewards], np.float64)


class RolloutBatch:
    """One batch in the making. step: number of updates that its weights have; before: the state in
    the last record, {} at first; seconds: spent so far, by activity; refit: the engine's metrics of
    the transfer of weights before this batch."""

    def __init__(
        self,
        config: Config,
        number: int,
        step: int,
        before: Mapping[str, Any],
        asker: Asker,
        decode: Callable[[Sequence[int]], str],
        rewards: Rewards,
        known: int | None = None,
    ) -> None:
        """known: an answer with an id that the teacher does not know, this one or above, is not
        trained; None without a teacher, or where it knows all ids."""
        self._known = known
        self._config, self.number, self.step, self._before = config, number, step, before
        self._asker, self._decode, self._rewards = asker, decode, rewards
        self._drawn: list[DrawnTask] = []
        self.groups: list[Group] = []
        self.rounds = 0
        self.seconds = Counter[str]()
        self.refit: dict[str, float] = {}
        self._asked_at = 0.0

    def begin(self) -> list[Ask]:
        """The first asks."""
        return self._ask(self._config.rollouts.prompts)

    def take(
        self,
        made: Sequence[Sequence[Rollout]],
        model_scores: Sequence[float | None] | None = None,
    ) -> list[Ask]:
        """Take and reward the samples of the last asks; returns further asks, [] when done.

        model_scores: the reward model's score of each rollout, in order.
        """
        began = time.perf_counter()
        self.seconds["rollout"] += began - self._asked_at
        drawn, decode, rewards = self._drawn, self._decode, self._rewards
        self.groups += rewarded(drawn, made, decode, rewards, model_scores)
        self.seconds["reward"] += time.perf_counter() - began
        missing = self._config.rollouts.prompts - sum(map(self.is_kept, self.groups))
        if missing <= 0 or not self._filters or self.rounds > self._config.rl.refills:
            return []
        return self._ask(missing)

    def is_kept(self, group: Group) -> bool:
        """Whether a group teaches anything; with a teacher in place of rewards it always does."""
        if self._config.run.mode == "distill":
            return True
        settings, totals = self._config.rl.advantage, group.totals
        if not self._config.rl.filter:
            return not np.isnan(totals).all()
        if settings.parts != "each":
            return teaches(totals, settings)
        parts_GP = np.array([_scores(reward) for reward in group.rewards], np.float64)
        parts_GP[np.isnan(totals)] = np.nan
        return teaches(parts_GP, settings, list(self._rewards.weights(group.drawn.task).values()))

    def record(self, entropies: Sequence[float] = ()) -> RolloutRecord:
        """The whole batch, with the loop's state after it.

        entropies: of the updates since the last batch was made, in order.
        """
        config = self._config
        columns = records.of_groups(
            [group.rollouts for group in self.groups], [group.drawn.name for group in self.groups]
        )
        rewards = [reward for group in self.groups for reward in group.rewards]
        reward_N = np.array([g for group in self.groups for g in group.totals], np.float32)
        kept_N = np.array([self.is_kept(g) for g in self.groups for _ in g.rollouts], bool)
        is_trained_N = kept_N & self._has_room(columns) & self._is_answer(columns, reward_N)
        parts = [_scores(reward) for reward in rewards]
        whole = RolloutRecord(
            self.number,
            self.number * config.batch_updates,
            self.step,
            PARTS,
            **columns,
            reward_N=reward_N,
            advantage_N=np.zeros(len(rewards), np.float32),
            parts_NP=np.array(parts, np.float32).reshape(-1, len(PARTS)),
            is_trained_N=is_trained_N,
            counts=self._counts() | {"unknown_ids": int(self._has_unknown(columns).sum())},
            seconds=dict(self.seconds),
            refit=self.refit,
        )
        self._asker.learn(self._outcomes(whole))
        weights = [list(self._rewards.weights(g.drawn.task).values()) for g in self.groups]
        weight_NP = np.repeat(np.array(weights), [len(g.rollouts) for g in self.groups], axis=0)
        advantage_N = advantages_of(config, whole, weight_NP)
        return replace(whole, advantage_N=advantage_N, state=self._state(whole, entropies))

    def _state(self, record: RolloutRecord, entropies: Sequence[float]) -> dict[str, Any]:
        """asking: the Asker's state; entropy_coefficient: for this batch's updates; tokens: trained
        before it; update_tokens: of each of its updates; empty, idle, truncated_alone: number of
        batches in a row, up to this one, with nothing to train, with some updates empty, and with
        nearly all answers truncated; seed: of the order in which updates share its rollouts."""
        config, before = self._config, self._before
        settings = config.rl.entropy
        coefficient = before.get("entropy_coefficient", settings.coefficient)
        for entropy in entropies:
            coefficient = next_coefficient(coefficient, entropy, settings)
        trained_N = record.trained_tokens_N
        shares = record.updates(config.batch_updates, config.run.seed)
        cut = record.is_truncated_N.mean() if len(record) else 0.0
        in_a_row = {
            "empty": not trained_N.any(),
            "idle": trained_N.any() and not all(shares),
            "truncated_alone": len(record) and cut >= (1 if trained_N.any() else NEARLY_ALL),
        }
        return {
            "asking": self._asker.state,
            "entropy_coefficient": coefficient,
            "tokens": before.get("tokens", 0) + sum(before.get("update_tokens", ())),
            "update_tokens": [int(trained_N[share].sum()) for share in shares],
            "seed": config.run.seed,
            **{name: before.get(name, 0) + 1 if so else 0 for name, so in in_a_row.items()},
        }

    def samples(self, record: RolloutRecord) -> Iterator[dict[str, Any]]:
        """A few rollouts as text: the best and the worst of the first groups."""
        first = 0
        for group in self.groups[:SHOWN_GROUPS]:
            order = np.argsort(np.nan_to_num(group.totals, nan=-np.inf), kind="stable")
            for n in dict.fromkeys((int(order[-1]), int(order[0]))):
                rollout, reward = group.rollouts[n], group.rewards[n]
                yield {
                    "task": group.drawn.task.id,
                    "source": group.drawn.source,
                    "mode": group.drawn.name.mode,
                    "messages": list(group.drawn.task.messages),
                    "answer": group.texts[n],
                    "pieces": self._pieces(rollout),
                    "finish": rollout.finish,
                    "error": rollout.error,
                    "tokens": len(rollout.tokens),
                    "reward": reward.total,
                    "parts": dict(reward.parts),
                    "reasons": dict(reward.reasons),
                    "advantage": float(record.advantage_N[first + n]),
                    "is_trained": bool(record.is_trained_N[first + n]),
                }
            first += len(group.rollouts)

    def _pieces(self, rollout: Rollout) -> list[list[Any]]:
        """The text in pieces, sampled or not; the token that ended it apart."""
        end = -1 if rollout.finish == STOP else None
        return pieces_of(rollout.tokens[:end], rollout.sampled[:end], self._decode)

    def _ask(self, count: int) -> list[Ask]:
        self._drawn = self._asker.draw(count)
        self.rounds += 1
        self._asked_at = time.perf_counter()
        return [drawn.ask for drawn in self._drawn]

    @property
    def _filters(self) -> bool:
        return self._config.rl.filter and self._config.run.mode == "rl"

    def _is_answer(self, columns: Mapping[str, Any], reward_N: Array) -> Array:
        """Whether each rollout can be learned from: it has a reward, or a teacher can score it."""
        if self._config.run.mode == "rl":
            return ~np.isnan(reward_N)
        failed = [records.FINISHES.index(finish) for finish in (ABORT, ERROR)]
        return ~np.isin(columns["finish_N"], failed) & ~self._has_unknown(columns)

    def _has_unknown(self, columns: Mapping[str, Any]) -> Array:
        """Whether each rollout has an id that the teacher does not know."""
        places_N: Array = columns["prompt_lengths_N"] + columns["lengths_N"]
        if self._known is None:
            return np.zeros(len(places_N), bool)
        return records.any_beyond(columns["ids"], places_N, self._known)

    def _has_room(self, columns: Mapping[str, Any]) -> Array:
        """Whether each rollout fits into a row: tools' answers may have made it too long."""
        places_N: Array = columns["prompt_lengths_N"] + columns["lengths_N"] - 1
        return places_N <= self._config.data.sequence_length

    def _outcomes(self, record: RolloutRecord) -> Iterator[TaskOutcome]:
        """The curriculum's results of each task. A truncated answer counts as failed even where it
        has no score; otherwise a task that is always truncated would count as never asked."""
        passed_N, first = record.passed_N, 0
        passed_N = np.where(np.isnan(passed_N) & record.is_truncated_N, 0.0, passed_N)
        for group in self.groups:
            own = passed_N[first : first + len(group.rollouts)]
            known = own[~np.isnan(own)]
            yield TaskOutcome(
                group.drawn.source, group.drawn.task.id, len(known), float(known.sum())
            )
            first += len(group.rollouts)

    def _counts(self) -> dict[str, float]:
        rollouts = [rollout for group in self.groups for rollout in group.rollouts]
        totals = [group.totals for group in self.groups]
        return {
            "asked": len(self.groups),
            "kept": sum(map(self.is_kept, self.groups)),
            "refills": self.rounds - 1,
            "unscored_groups": sum(bool(np.isnan(x).all()) for x in totals),
            "unscored": int(sum(np.isnan(x).sum() for x in totals)),
            "unscored_truncated": _unscored_truncated(self.groups),
            "truncated": sum(rollout.is_truncated for rollout in rollouts),
            "errors": sum(rollout.finish == ERROR for rollout in rollouts),
            "too_long": self._asker.too_long,
        }


def rewarded(
    drawn: Sequence[DrawnTask],
    made: Sequence[Sequence[Rollout]],
    decode: Callable[[Sequence[int]], str],
    rewards: Rewards,
    model_scores: Sequence[float | None] | None = None,
) -> list[Group]:
    """The answers to the drawn tasks with their rewards, each as text without the token that ended
    it. model_scores: the reward model's score of each rollout, in order."""
    texts = [
        [decode(r.tokens[: -1 if r.finish == STOP else None]) for r in rollouts]
        for rollouts in made
    ]
    answered = [
        (asked.task, rollout, text)
        for asked, rollouts, own in zip(drawn, made, texts, strict=True)
        for rollout, text in zip(rollouts, own, strict=True)
    ]
    scored = iter(rewards.score(answered, model_scores))
    return [
        Group(asked, rollouts, own, [next(scored) for _ in rollouts])
        for asked, rollouts, own in zip(drawn, made, texts, strict=True)
    ]


def advantages_of(
    config: Config,
    record: RolloutRecord,
    weight_NP: Array | None = None,
    penalty_N: Array | None = None,
) -> Array:
    """The advantages of trained rollouts, float32 [N]; 0 for the others, which no mean counts.

    weight_NP: of the parts of a reward, which rl.advantage.parts = "each" normalises one by one.
    """
    is_each = config.rl.advantage.parts == "each" and weight_NP is not None
    rewards = (record.parts_NP if is_each else record.reward_N).astype(np.float64)
    rewards[~record.is_trained_N] = np.nan
    if not len(rewards):
        return np.zeros(0, np.float32)
    found = advantages(
        rewards,
        record.group_N,
        config.rl.advantage,
        weights=weight_NP if is_each and weight_NP is not None else 1.0,
        penalty_N=0.0 if penalty_N is None else penalty_N,
        tokens_N=record.trained_tokens_N,
    )
    return found.astype(np.float32)


def _scores(reward: Reward) -> list[float]:
    """The score of each part, NaN where it has none."""
    scores = [reward.parts.get(name) for name in PARTS]
    return [np.nan if score is None else score for score in scores]


def _unscored_truncated(groups: Sequence[Group]) -> int:
    return sum(
        rollout.is_truncated and reward.total is None
        for group in groups
        for rollout, reward in zip(group.rollouts, group.rewards, strict=True)
    )
