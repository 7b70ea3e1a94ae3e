"""A reward model on the policy's ranks: a second model, in a layout of its own.

    reward_model = RewardModel(config, layout.world_size, alive)   # all ranks, after the policy
    scores = reward_model.score(rollouts)                    # all ranks, with the same rollouts
    rewards.score(answered, scores)                          # the first rank

It scores the sampled ids themselves: nothing is decoded and encoded again, so the reward model must
have the policy's tokenizer (`model_settings.check`). The reward is read at the token that ended the
answer. A truncated answer has no such token, so its score is None, not 0.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from megatron_qwen3.convert import load
from megatron_qwen3.parallel import runtime
from megatron_qwen3.parallel.groups import ProcessGroups
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.posttrain.rewards.answer_lines import Ids
from megatron_qwen3.posttrain.rewards.model_settings import settings_of
from megatron_qwen3.posttrain.rewards.scoring import scores
from megatron_qwen3.posttrain.rollouts.rollout import STOP, Rollout
from megatron_qwen3.settings import Config
from megatron_qwen3.training.model import Model

_ROW_TOKENS = 8192  # places of a row that answers share; the longest answer's length, if greater
_ROWS_AT_ONCE = 8  # of each data rank


class RewardModel:
    """The loaded model of rl.judge.model. alive: called before each part of the answers.
    ConfigError where its weights are damaged."""

    def __init__(
        self, config: Config, world_size: int, alive: Callable[[], None] = lambda: None
    ) -> None:
        theirs = settings_of(config, world_size)
        own = Layout.of(theirs, world_size)
        self._model = Model(theirs, own, ProcessGroups.make(own, runtime.patience(config)))
        load.fill(
            self._model,
            load.find(config.rl.judge.model),
            config.checkpoint.verify,
            free=load.CHANGEABLE,
        )
        self._vocab_size, self._alive = theirs.model.vocab_size, alive

    def score(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """The reward of each answer, in order, on every rank.

        None for an answer that did not end by itself, that has ids unknown to the reward model, or
        whose score is not finite.
        """
        ids = {n: np.array((*r.prompt, *r.tokens), np.int32) for n, r in enumerate(rollouts)}
        whole = [
            n
            for n, r in enumerate(rollouts)
            if r.finish == STOP and ids[n].max() < self._vocab_size
        ]
        found: list[float | None] = [None] * len(rollouts)
        for part in self._parts(whole, ids):
            self._alive()
            made = scores(self._model, [ids[n] for n in part], _ROW_TOKENS)
            for n, score in zip(part, made, strict=True):
                found[n] = score if math.isfinite(score) else None
        return found

    def _parts(self, numbers: Sequence[int], ids: dict[int, Ids]) -> Iterator[list[int]]:
        """Answers that are scored at once: up to a number of tokens, or one answer."""
        most = _ROW_TOKENS * _ROWS_AT_ONCE * self._model.layout.data
        part: list[int] = []
        for n in numbers:
            if part and sum(len(ids[k]) for k in [*part, n]) > most:
                yield part
                part = []
            part.append(n)
        if part:
            yield part
