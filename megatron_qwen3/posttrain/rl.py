"""Reinforcement learning: rollouts, rewards, advantages, updates. run.mode = "rl".

    python -m megatron_qwen3.train examples/stages/post_2_reasoning_rl.toml MODEL.toml

A step is an optimizer update. Before the first one of a batch the policy answers tasks
(`rollouts/`), the answers are rewarded (`rewards/`), and the record of both is written into the run
folder; each update trains its share of the record (`policy/`). So an update is a function of the
record and of the weights, and a run that was killed anywhere goes on to the bit.

Legend: N rollouts, T their tokens one after another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from megatron_qwen3.convert import load
from megatron_qwen3.generate.load import tokenizer_of
from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.posttrain.evaluation.tasks import open_source
from megatron_qwen3.posttrain.policy.objective import (
    ADVANTAGE,
    OLD,
    REFERENCE,
    SAMPLER,
    policy_objective,
    trained_answers,
)
from megatron_qwen3.posttrain.policy.rejection import without_rejected
from megatron_qwen3.posttrain.rewards.rewards import Rewards
from megatron_qwen3.posttrain.rollouts import before, told
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.asking import Source
from megatron_qwen3.posttrain.rollouts.batches import advantages_of
from megatron_qwen3.posttrain.rollouts.engines import open_engine
from megatron_qwen3.posttrain.rollouts.held_out import evaluate
from megatron_qwen3.posttrain.rollouts.maker import Rollouts
from megatron_qwen3.posttrain.rollouts.record import Array, Record
from megatron_qwen3.posttrain.rollouts.rows import Rows
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.storage.folder import checkpoints
from megatron_qwen3.training import origin, tokenizer_check
from megatron_qwen3.training.bad_batch import BadBatch
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.objectives import Objective
from megatron_qwen3.training.run import Run


def check(config: Config) -> list[Source]:
    """The tasks that a run asks. ConfigError, before any rank starts, for all that can be wrong."""
    origin.check(config)
    tokenizer_check.check_size(config)
    tokenizer_of(config)
    if not config.rollouts.tasks:
        raise ConfigError("rollouts.tasks is empty: what is to be asked? add [[rollouts.tasks]]")
    sources = [
        Source.of(asked, open_source(asked.path, asked.name), config.rollouts.held_out)
        for asked in config.rollouts.tasks
    ]
    rewards = Rewards(config, config.run_dir)
    for source in sources:
        for number in range(source.tasks.size or 1):
            rewards.check(source.tasks.task(number))
    if config.rl.kl.coefficient:
        load.check_model(config.model, reference_of(config))
    return sources


def run(config: Config, layout: Layout, inputs: list[Source]) -> bool:
    """Train a stage on this rank; False where it stopped early, to be continued.

    Raises ConfigError where no checkpoint or record is intact; BadBatch, SaveFailed,
    EvaluationFailed: it stopped, and a person must look.
    """
    with Run(config, layout) as run, _opened(run, inputs) as rollouts:
        reference = _reference(config, layout)
        _begin(run)
        entropies = _Entropies(run)
        batch: _Batch | None = None
        for step in run.steps(partial(evaluate, rollouts)):
            number, update = divmod(step, config.rl.updates)
            if batch is None or batch.record.batch != number:
                batch = _next(run, rollouts, reference, number, step, entropies)
            if batch.rows[update] is None:
                run.log.note(f"step {step + 1}: no rollout of its batch is left to train")
                continue
            try:
                metrics = _train(run, batch, step, update)
            except BadBatch as error:
                batch = None  # read again: after a rollback it may be another
                _leave_out(run, step, f"{error}; rollouts of batch {number}")
            else:
                entropies.of_step[step] = metrics["entropy"]
    return run.is_done


@dataclass(frozen=True)
class _Batch:
    """A record as updates: rows of each, None of one without rollouts.

    of_tokens: log-probs of all tokens [T], by their names in an update's extras; masked: rollouts
    of each update's groups that are not trained; seconds: of this, to be told with its first step.
    """

    record: Record
    rows: list[Rows | None]
    of_tokens: dict[str, Array]
    masked: list[int]

    @classmethod
    def of(cls, run: Run, record: Record, reference: Model | None) -> _Batch:
        """All ranks call it: old and reference log-probs are computed here."""
        config, layout, model = run.config, run.engine.layout, run.engine.model
        shares = record.updates(config.rl.updates, config.run.seed)
        unit = layout.tensor if config.parallel.sequence else 1
        sizes = config.data.sequence_length, layout.data, config.train.micro_batch, unit
        rows = [Rows.of(record, share, *sizes) if share else None for share in shares]
        of_tokens = {SAMPLER: record.log_probs}
        if before.are_needed(config):
            of_tokens[OLD] = before.own(config, model, record, rows)
        if reference:
            temperature = config.rollouts.temperature
            of_tokens[REFERENCE] = before.scored(reference, rows, record, temperature)
        if before.penalizes(config):
            record = _penalized(config, record, of_tokens[OLD] - of_tokens[REFERENCE])
        masked = [_without(record, share) for share in shares]
        return cls(record, rows, of_tokens, masked)


def _without(record: Record, share: Sequence[int]) -> int:
    """Rollouts of an update's groups that have no trained token."""
    groups = np.unique(record.group_N[list(share)])
    return int(np.isin(record.group_N, groups).sum()) - len(share)


def _penalized(config: Config, record: Record, apart_T: Array) -> Record:
    """The record with advantages of rewards less the divergence from the reference (k1), summed
    over the sampled tokens of each answer."""
    of_T = np.repeat(np.arange(len(record)), record.lengths_N)
    kl_N = np.bincount(of_T, apart_T * record.sampled, minlength=len(record))
    penalty_N = config.rl.kl.coefficient * kl_N
    return replace(record, advantage_N=advantages_of(config, record, penalty_N=penalty_N))
