"""Reinforcement learning: rollouts, rewards, advantages, updates. run.mode = "rl".

    python -m megatron_qwen3.train examples/stages/post_2_reasoning_rl.toml MODEL.toml

A step is an optimizer update. Before the first step of a batch the policy answers tasks
(`rollouts/`), verifiers or models reward the answers (`rewards/`), and the record of both is
written into the run folder; each update trains its share of the record (`policy/`). So an update is
a function of the record and the weights, and a run killed anywhere resumes to the bit.

Legend: N rollouts, T their tokens one after another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from megatron_qwen3 import launcher
from megatron_qwen3.convert import load
from megatron_qwen3.generate.load import tokenizer_of
from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.parallel.layout import Layout, row_unit
from megatron_qwen3.posttrain import kept_models
from megatron_qwen3.posttrain.evaluation.tasks import open_source
from megatron_qwen3.posttrain.policy import kl
from megatron_qwen3.posttrain.policy.objective import (
    ADVANTAGE,
    OLD,
    REFERENCE,
    SAMPLER,
    policy_objective,
    trained_answers,
)
from megatron_qwen3.posttrain.policy.rejection import without_rejected
from megatron_qwen3.posttrain.rewards import judge, model_settings
from megatron_qwen3.posttrain.rewards.reward_model import RewardModel
from megatron_qwen3.posttrain.rewards.rewards import Rewards
from megatron_qwen3.posttrain.rollouts import before, health, resume
from megatron_qwen3.posttrain.rollouts.asking import SplitTasks
from megatron_qwen3.posttrain.rollouts.batches import advantages_of
from megatron_qwen3.posttrain.rollouts.engines import check_engine, open_engine
from megatron_qwen3.posttrain.rollouts.held_out import evaluate
from megatron_qwen3.posttrain.rollouts.maker import Rollouts
from megatron_qwen3.posttrain.rollouts.prompts import check_room, encoder
from megatron_qwen3.posttrain.rollouts.record import Array, RolloutRecord
from megatron_qwen3.posttrain.rollouts.rows import RolloutRows
from megatron_qwen3.posttrain.watching.summary import summary
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.training import origin, tokenizer_check
from megatron_qwen3.training.bad_batch import BadBatch
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.run import Run


def check(config: Config) -> list[SplitTasks]:
    """The tasks that a run asks. ConfigError, before any rank starts, for every fault."""
    sources, rewards = sources_of(config), Rewards(config, config.run_dir)
    for source in sources:
        for number in range(source.tasks.size or 1):
            rewards.check(source.tasks.task(number))
    if config.rl.kl.coefficient:
        load.check_model(config, reference_of(config))
    if model_settings.is_asked(config):
        model_settings.check(config, launcher.world_size())
        load.check_there("rl.judge.model", config.rl.judge.model)
    return sources


def sources_of(config: Config) -> list[SplitTasks]:
    """The sources of tasks. ConfigError where there are none, or for any fault of the run's other
    inputs: initial weights, kept models, records, tokenizer, engine."""
    origin.check(config)
    kept_models.check(config)
    resume.check(config)
    tokenizer_check.check_size(config)
    if not config.data.tokenizer:
        raise ConfigError("data.tokenizer is needed to ask tasks and to read answers; set it")
    tokenizer = tokenizer_of(config)
    check_engine(config)
    if not config.rollouts.tasks:
        raise ConfigError("rollouts.tasks is empty: add at least one [[rollouts.tasks]]")
    needs_rewards, fraction = config.run.mode == "rl", config.rollouts.held_out
    sources = [
        SplitTasks.of(asked, open_source(asked.path, asked.name, needs_rewards), fraction)
        for asked in config.rollouts.tasks
    ]
    check_room(config, sources, encoder(config, tokenizer))
    return sources


def run(config: Config, layout: Layout, inputs: list[SplitTasks]) -> bool:
    """Train a stage on this rank; False where it stopped early, to be continued.

    Raises ConfigError where no checkpoint or record is intact, or the judge does not answer;
    BadBatch, SaveFailed, EvaluationFailed: the run stopped and needs a person to look.
    """
    if config.rl.judge.url:
        of_first(partial(judge.check, config.rl.judge))  # before a model is built
    with Run(config, layout) as run, opened(run, inputs) as rollouts, run.stopping():
        of_first(partial(kept_models.write, config))
        with run.waiting():  # loading it takes long: it grows with its files
            reference = _reference(config, layout)
        entropies = of_first(lambda: resume.begin(run))
        batch: _Batch | None = None
        for step in run.steps(partial(evaluate, rollouts, lambda: run.step)):
            number, update = divmod(step, config.batch_updates)
            if batch is None or batch.record.batch != number:
                batch = _next(run, rollouts, reference, number, step, entropies)
            rows = batch.rows[update]
            if rows is None:
                run.log.note(f"step {step + 1}: no rollout is left to train")
                continue
            try:
                entropies[step] = _train(run, batch, rows, step, update)["entropy"]
            except BadBatch as error:
                batch = None  # after a rollback it may be another
                run.leave_out(step, f"{error}; its rollouts are of batch {number}")
                first = of_first(partial(resume.roll_back, run, step))
                entropies = {done: x for done, x in entropies.items() if done < first}
    return run.is_done


@contextmanager
def opened(run: Run, sources: list[SplitTasks]) -> Iterator[Rollouts]:
    """The batches' Rollouts: an engine that samples, on all ranks; rewards, on the first rank."""
    config, model, tokenizer = run.config, run.engine.model, tokenizer_of(run.config)
    with ExitStack() as opening:
        signs = partial(run.go_on, "rollouts"), partial(run.beat, "rollouts"), run.waiting
        engine = opening.enter_context(open_engine(config, model, tokenizer, *signs))
        rewards: Rewards | None = None

        def open_rewards() -> None:
            nonlocal rewards
            rewards = opening.enter_context(Rewards(config, config.run_dir))

        with run.waiting():
            of_first(open_rewards)  # an unreachable judge ends all ranks
        judged_by = None
        if model_settings.is_asked(config):
            alive = partial(run.beat, "rewards")
            with run.waiting():  # loading it takes long: it grows with its files
                judged_by = RewardModel(config, run.engine.layout.world_size, alive).score
        yield Rollouts(config, engine, sources, tokenizer, rewards, judged_by, run.waiting)


def reference_of(config: Config) -> Path:
    """Folder of the reference's weights. ConfigError where no setting names one."""
    named = config.rl.kl.reference or config.checkpoint.init_from
    if not named:
        raise ConfigError(
            f"rl.kl.coefficient = {config.rl.kl.coefficient} needs a reference: set "
            "rl.kl.reference, or checkpoint.init_from"
        )
    return load.find(named)


def _reference(config: Config, layout: Layout) -> Model | None:
    """The model that the KL term holds the policy near, in its layout; None without a KL term."""
    if not config.rl.kl.coefficient:
        return None
    model = Model(config, layout)
    load.fill(model, reference_of(config), config.checkpoint.verify)
    return model


def _next(
    run: Run,
    rollouts: Rollouts,
    reference: Model | None,
    number: int,
    step: int,
    entropies: dict[int, float],
) -> _Batch:
    """The batch of a step, read or made; with lag, this makes the next one too.

    BadBatch where too many batches in a row left nothing to train.
    """
    config, updates = run.config, run.config.batch_updates
    since = [entropies[s] for s in range(step - updates, step) if s in entropies]
    record = rollouts.batch(number, step, since)
    if config.rollouts.lag and (number + 1) * updates < config.steps:
        rollouts.batch(number + 1, step, since)
    for line in health.lines(config, record):
        run.log.note(line)
    health.check(config, record)
    began = time.perf_counter()
    batch = _Batch.of(run, record, reference)
    if step == record.first_step:
        run.sampled(step, told(record, time.perf_counter() - began))
    of_first(lambda: resume.forget(config, step))
    return batch


def told(record: RolloutRecord, scoring_seconds: float) -> dict[str, float | None]:
    """The metrics of a batch, with the seconds of computing its log-probs before its updates."""
    row = summary(record)
    seconds = row["seconds"] or 0.0
    return row | {"seconds/score": scoring_seconds, "seconds": seconds + scoring_seconds}


def _train(run: Run, batch: _Batch, rows: RolloutRows, step: int, update: int) -> dict[str, float]:
    """One update; its metrics."""
    config, engine = run.config, run.engine
    made = rows.batch(engine.data_rank, {ADVANTAGE: batch.record.advantage_N}, batch.of_tokens)
    kept = without_rejected(made, config.rl.loss)
    sequences = len(rows.rollouts)
    if kept is not made:
        count = trained_answers(kept).to(engine.device)
        sequences = int(engine.model.sum_over_data(count).item())
        if not sequences:
            raise BadBatch(f"rl.loss.rejection = {config.rl.loss.rejection!r} rejects all tokens")
    state, masked = batch.record.state, batch.masked[update] + len(rows.rollouts) - sequences
    objective = policy_objective(
        config, sequences, masked, state["entropy_coefficient"], OLD in made.extra
    )
    return run.train(step, kept, objective, *resume.counted(run, batch.record, rows, step))


def rows_of(
    run: Run, record: RolloutRecord, shares: Sequence[Sequence[int]], unit: int = 1
) -> list[RolloutRows | None]:
    """The rows of each update; None for an update without rollouts. unit: a factor of their length
    that others than the policy need."""
    config, layout = run.config, run.engine.layout
    unit = math.lcm(unit, row_unit(config.parallel, config.fp8)[0])
    sizes = config.data.sequence_length, layout.data, config.train.micro_batch, unit
    return [RolloutRows.of(record, share, *sizes) if share else None for share in shares]


@dataclass(frozen=True)
class _Batch:
    """A record as updates: the rows of each, None for an update without rollouts.

    of_tokens: log-probs of all tokens [T], by their names in an update's extras; masked: number of
    untrained rollouts in each update's groups; seconds: of making this, logged with its first step.
    """

    record: RolloutRecord
    rows: list[RolloutRows | None]
    of_tokens: dict[str, Array]
    masked: list[int]

    @classmethod
    def of(cls, run: Run, record: RolloutRecord, reference: Model | None) -> _Batch:
        """Computes old and reference log-probs; all ranks call it."""
        config, model, alive = run.config, run.engine.model, partial(run.beat, "log-probs")
        shares = record.updates(config.batch_updates, config.run.seed)
        rows = rows_of(run, record, shares)
        of_tokens = {SAMPLER: record.log_probs}
        if before.are_needed(config):
            of_tokens[OLD] = before.own(config, model, record, rows, alive)
        if reference:
            temperature = config.rollouts.temperature
            of_tokens[REFERENCE] = before.scored(reference, rows, record, temperature, alive)
        if before.penalizes(config):
            record = _penalized(config, record, of_tokens)
        masked = [_without(record, share) for share in shares]
        return cls(record, rows, of_tokens, masked)


def _without(record: RolloutRecord, share: Sequence[int]) -> int:
    """Number of rollouts in an update's groups that have no trained token."""
    groups = np.unique(record.group_N[list(share)])
    return int(np.isin(record.group_N, groups).sum()) - len(share)


def _penalized(
    config: Config, record: RolloutRecord, of_tokens: Mapping[str, Array]
) -> RolloutRecord:
    """The record, its rewards reduced by the divergence from the reference (summed over each
    answer's sampled tokens) before advantages are computed."""
    settings = config.rl.kl
    own_T, reference_T = (torch.from_numpy(of_tokens[name]) for name in (OLD, REFERENCE))
    how = settings.estimator, settings.limit, settings.most
    kl_T = kl.estimate(own_T, reference_T, *how).numpy()
    of_T = np.repeat(np.arange(len(record)), record.lengths_N)
    kl_N = np.bincount(of_T, kl_T * record.sampled, minlength=len(record))
    penalty_N = config.rl.kl.coefficient * kl_N
    return replace(record, advantage_N=advantages_of(config, record, penalty_N=penalty_N))
