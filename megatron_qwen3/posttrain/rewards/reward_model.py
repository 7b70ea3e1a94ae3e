"""A reward model beside the policy: a second model on the same ranks, in a layout of its own.

    reward_model = RewardModel(config, layout.world_size, alive)   # all ranks, after the policy
    scores = reward_model.score(rollouts)                    # all ranks, with the same rollouts
    rewards.score(answered, scores)                          # the first rank

The ids that were sampled are the ids that are scored: nothing is decoded and encoded again, so the
policy's tokenizer must be the reward model's (`model_settings.check`). The reward is read from the
token that ended the answer. An answer that was cut has none, and neither a score nor one of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from megatron_qwen3.convert import load
from megatron_qwen3.parallel import runtime
from megatron_qwen3.parallel.groups import ProcessGroups
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.posttrain.answer_lines import Ids
from megatron_qwen3.posttrain.rewards.model_settings import settings_of
from megatron_qwen3.posttrain.rollouts.rollout import STOP, Rollout
from megatron_qwen3.posttrain.scoring import scores
from megatron_qwen3.settings import Config
from megatron_qwen3.training.model import Model

_ROW_TOKENS = 8192  # places of a row that answers share; as many as the longest one, if more
_ROWS_AT_ONCE = 8  # of each data rank


class RewardModel:
    """The model of rl.judge.model, filled. alive: is called before each part of what is scored.
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

        None of one that did not end by itself, that has ids which the reward model does not, or
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
        """Those that are scored at once: so many tokens together, or one answer."""
        most = _ROW_TOKENS * _ROWS_AT_ONCE * self._model.layout.data
        part: list[int] = []
        for n in numbers:
            if part and sum(len(ids[k]) for k in [*part, n]) > most:
                yield part
                part = []
            part.append(n)
        if part:
            yield part
