"""Gives the batches of rollouts of a run on all ranks: reads them from disk, or makes them.

    rollouts = Rollouts(config, engine, sources, tokenizer, rewards)   # rewards: on the first rank
    record = rollouts.batch(7, step, entropies)                        # all ranks alike

All ranks sample; only the first asks, rewards and writes (`batches.py`), and its errors are raised
on all ranks.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from megatron_qwen3.launcher import tell
from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.posttrain.rewards.rewards import Rewards
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.asking import Asker, SplitTasks
from megatron_qwen3.posttrain.rollouts.batches import RolloutBatch
from megatron_qwen3.posttrain.rollouts.prompts import encoder
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord, folder_of
from megatron_qwen3.posttrain.rollouts.rollout import Ask, Rollout, RolloutEngine
from megatron_qwen3.posttrain.teachers.teacher_settings import known_ids
from megatron_qwen3.settings import Config

ModelScores = Callable[[Sequence[Rollout]], Sequence[float | None]]


class Rollouts:
    """Samples and rewards batches. model_scores: a reward model, which all ranks call together;
    waiting: a context that they hold, without a limit, while the first rank makes tasks or runs
    verifiers and judges.
    """

    def __init__(
        self,
        config: Config,
        engine: RolloutEngine,
        sources: Sequence[SplitTasks],
        tokenizer: Any,
        rewards: Rewards | None,
        model_scores: ModelScores | None = None,
        waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.config, self.engine, self.sources = config, engine, sources
        self.rewards, self.model_scores, self.waiting = rewards, model_scores, waiting
        self.seconds = Counter[str]()  # of making batches, by activity
        self._tokenizer, self.encode = tokenizer, encoder(config, tokenizer)

    def batch(self, number: int, step: int, entropies: Sequence[float] = ()) -> RolloutRecord:
        """The record of a batch. Where there is none, the weights of `step` updates sample it.

        entropies: of the updates since the last batch was made. ConfigError: a damaged record.
        """
        folder = folder_of(self.config.run_dir, number)
        if not of_first(folder.exists):
            self._make(number, step, entropies)
        return RolloutRecord.read(folder)

    def decode(self, ids: Sequence[int]) -> str:
        """Text, with control tokens as they are."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def scores(self, made: Sequence[Sequence[Rollout]]) -> Sequence[float | None] | None:
        """A reward model's score of each rollout, where there is a model."""
        flat = [rollout for rollouts in made for rollout in rollouts]
        return self.model_scores(flat) if self.model_scores else None

    def _make(self, number: int, step: int, entropies: Sequence[float]) -> None:
        batch: RolloutBatch | None = None  # None except on the first rank

        def begin() -> list[Ask]:
            nonlocal batch
            batch = self._batch(number, step)
            if refit:
                batch.refit, batch.seconds["refit"] = refit, refit_seconds
            return batch.begin()

        def take() -> list[Ask]:
            assert batch is not None
            return batch.take(made, scores)

        def write() -> None:
            assert batch is not None
            record = batch.record(entropies)
            record.write(folder_of(self.config.run_dir, number), batch.samples(record))
            needs_rewards = self.config.run.mode == "rl" and self.rewards is not None
            if needs_rewards and (line := self.rewards.alarm()):
                tell(f"note: batch {number}: {line}")
            self.seconds += batch.seconds

        began = time.perf_counter()
        refit = self.engine.refit(step)
        refit_seconds = time.perf_counter() - began
        with self.waiting():  # generators may take long to make tasks
            asks = of_first(begin)
        while asks:
            made = self.engine.sample(asks)
            scores = self.scores(made)
            with self.waiting():
                asks = of_first(take)
        of_first(write)

    def _batch(self, number: int, step: int) -> RolloutBatch:
        assert self.rewards is not None
        config, before = self.config, newest_state(self.config, number)
        asker = Asker(config, self.sources, self.encode, before.get("asking"))
        known = known_ids(config) if config.run.mode == "distill" else None
        return RolloutBatch(config, number, step, before, asker, self.decode, self.rewards, known)


def newest_state(config: Config, number: int) -> dict[str, Any]:
    """The state in the newest record before a batch; {} without a record."""
    before = [n for n in records.batches(config.run_dir) if n < number]
    if not before:
        return {}
    return records.read_state(folder_of(config.run_dir, before[-1]))
