"""Pretraining: read, step, log, evaluate, save, until the stage's tokens are used up.

A stage is a TOML file, not a class: stage 2 is this loop with stage 1's weights as its start
(checkpoint.init_from), its own mixture, schedule, sequence length and RoPE base.
"""

import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from megatron_qwen3.config import Config, ConfigError, changes, to_toml
from megatron_qwen3.config import load as load_settings
from megatron_qwen3.parallel import runtime
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.pretrain import record
from megatron_qwen3.pretrain.check import check_inputs
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.evaluate import EvaluationFailed, evaluate
from megatron_qwen3.pretrain.rows import token_batch
from megatron_qwen3.storage import folder, manifest
from megatron_qwen3.training import boards, checkpoint, objectives, stop
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.guard import FILE_NAME as LEFT_OUT_FILE
from megatron_qwen3.training.guard import BadBatch, Guard, rise
from megatron_qwen3.training.keeper import Keeper
from megatron_qwen3.training.metrics import RunLog
from megatron_qwen3.training.optim import described, learning_rate
from megatron_qwen3.training.progress import Progress, steps_of
from megatron_qwen3.training.reader import Reader
from megatron_qwen3.training.stop import StopRequest

_DIVERGED_NATS = 1.0  # by which the loss has risen within guard.window_steps


class Inputs(NamedTuple):
    """What the run is fed after `step` steps, and the record of it."""

    step: int
    mixture: Mixture
    record: record.Record


def check(config: Config) -> Inputs:
    """Everything that can be wrong with the inputs, before any rank starts: ConfigError."""
    folder.check_writable(config.run_dir)
    stop.check(config)
    boards.check(config)
    saved, before = checkpoint.newest(config.run_dir), None
    if config.checkpoint.init_from and not saved:  # what was begun needs its start no more
        source = checkpoint.find(config.checkpoint.init_from)
        checkpoint.check_same_model(config, source)
        if source.name.startswith("step_"):
            before = (source.parents[1], checkpoint.step_of(source))
    if saved and not config.checkpoint.resume:
        raise ConfigError(
            f"checkpoint.resume = false, but {config.run_dir} holds {saved.name}; "
            "delete the folder or choose another run.name"
        )
    if saved:
        checkpoint.check_same_model(config, saved)
        checkpoint.check_same_precision(config, saved)
    step = checkpoint.step_of(saved) if saved else 0
    history = record.prepare(config, step, before)
    mixture = Mixture(history.parts[-1])
    check_inputs(config, mixture)
    return Inputs(step, mixture, history)


def run(config: Config, layout: Layout, inputs: Inputs) -> bool:
    """Train one stage from the newest checkpoint of the run folder, if any.

    True when its last step is done, saved and evaluated; False where the run was asked to stop
    early, and what it did until then is saved. BadBatch, SaveFailed, EvaluationFailed: it stopped,
    and a person must look.
    """
    request = StopRequest(config)
    engine = Engine(config, layout)
    progress, origin = _start(engine, config)
    if progress.step != inputs.step:  # a checkpoint proved damaged only when it was read
        inputs = check(config)
    mixture, step, stops, is_evaluated = inputs.mixture, progress.step, False, True
    guard = Guard(config, progress)
    if engine.is_first_rank:
        _prepare_folder(config, inputs)
    z_loss = config.optim.z_loss
    objective = objectives.with_z_loss(z_loss) if z_loss else objectives.cross_entropy
    with (
        RunLog(config, layout, first_step=step, is_writer=engine.is_first_rank) as log,
        Keeper(engine, config, log, request, saved_step=step) as keeper,
        Reader(partial(_batch, mixture, config, engine), config.steps, engine.device) as reader,
    ):
        for line in (*origin, f"optimizer: {described(engine.optimizer)}", *inputs.record.news):
            log.note(line)
        if step and _due(step, config.eval.every_steps) and not log.has_evaluated(step):
            is_evaluated = _evaluate(mixture, engine, log, keeper, guard.progress(step))
            stops = keeper.check(step, 0.0)
        while (step := guard.next_step(step)) < config.steps and not stops:
            began = time.perf_counter()
            batch = reader.batch(step, then=guard.next_step(step + 1))
            rate = learning_rate(config, step)
            runtime.seed(config.run.seed + step)
            try:
                metrics = engine.train_step(batch, objective, rate, guard.limits())
                torch.cuda.synchronize()  # a GPU's update belongs to the time of its step
            except BadBatch as error:
                keeper.settle()  # what is being saved is what the run may go back to
                reason = _describe(error, mixture, config, step)
                log.note(_leave_out(reason, step, engine, guard, keeper))
                step += 1
            else:
                step += 1
                guard.accept(metrics)
                metrics["tokens"] = inputs.record.tokens_after(step, steps_of(guard.left_out))
                log.train(step, metrics, rate, time.perf_counter() - began)
            if _due(step, config.checkpoint.every_steps):
                keeper.save(guard.progress(step))
            if _due(step, config.eval.every_steps) and step < config.steps:
                is_evaluated = _evaluate(mixture, engine, log, keeper, guard.progress(step))
            stops = keeper.check(step, time.perf_counter() - began)
        keeper.settle()
        if stops or config.checkpoint.at_end:
            keeper.finish(guard.progress(step))
        if step >= config.steps and not log.has_evaluated(step):
            is_evaluated = _evaluate(mixture, engine, log, keeper, guard.progress(step))
    return step >= config.steps and is_evaluated


def _start(engine: Engine, config: Config) -> tuple[Progress, list[str]]:
    """Load what the run goes on from: where it stands, and lines on where that is from."""
    in_full = config.checkpoint.verify == "full"
    saved, told = checkpoint.newest_intact(config.run_dir, in_full)
    if saved:
        progress = checkpoint.load(engine, saved)
        told += [f"resumed from {saved}", *_changes(config, saved, progress.step)]
        if progress.step >= config.steps:
            told.append(f"this run is done: all of its {config.steps:,} steps are trained")
        return progress, told
    if config.checkpoint.init_from:
        source = checkpoint.find(config.checkpoint.init_from)
        checkpoint.check_intact(source, in_full)
        checkpoint.load_weights(engine, source)
        return Progress(), [f"weights from {source}"]
    return Progress(), [f"fresh weights from seed {config.run.seed}"]


def _evaluate(
    mixture: Mixture, engine: Engine, log: RunLog, keeper: Keeper, progress: Progress
) -> bool:
    """Score what is held out; False where the run is asked to stop instead.

    The step is saved before the last evaluation, and where an evaluation fails.
    """
    step = progress.step
    try:
        results = evaluate(engine.model, mixture, engine.config, keeper.goes_on)
    except EvaluationFailed as error:
        if engine.config.checkpoint.at_end:
            keeper.settle()
            keeper.finish(progress)
        raise EvaluationFailed(
            f"the evaluation after step {step}: {error}{keeper.has(step)}"
        ) from None
    except Exception as error:
        error.add_note(f"in the evaluation after step {step}{keeper.has(step)}")
        raise
    log.evaluation(step, results or {})
    return results is not None


def _changes(config: Config, saved: Path, step: int) -> list[str]:
    """What a run that goes on does otherwise than until now, as lines."""
    before = load_settings([saved / folder.SETTINGS_FILE])
    lines = [
        line
        for line in changes(before, config)
        if not line.startswith(("run.name:", "run.dir:", "checkpoint.init_from:"))
    ]
    rates = [f"{learning_rate(c, step):.4g}" for c in (before, config)]
    if step < config.steps and rates[0] != rates[1]:
        lines.append(f"learning rate of step {step + 1}: {' → '.join(rates)}")
    return [f"changed: {line}" for line in lines]


def _prepare_folder(config: Config, inputs: Inputs) -> None:
    """What one rank writes before the first step."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    folder.clean(config.run_dir)
    for name in (LEFT_OUT_FILE, boards.ID_FILE) if not inputs.step else ():
        (config.run_dir / name).unlink(missing_ok=True)  # of another run
    (config.run_dir / "config.toml").write_text(to_toml(config), encoding="utf-8")
    inputs.record.write(config.run_dir)


def _leave_out(reason: str, step: int, engine: Engine, guard: Guard, keeper: Keeper) -> str:
    """Do with a bad batch what guard.bad_batch says, on all ranks; what to tell. BadBatch: stop."""
    config, first, back = engine.config, step, ""
    action = config.guard.bad_batch
    if action == "stop":
        raise BadBatch(reason)
    if action == "skip" and not engine.model.weights_are_finite():
        raise BadBatch(f"{reason}; weights are not finite, another batch would not help")
    if action == "rollback":
        saved, _ = checkpoint.newest_intact(config.run_dir, in_full=False)
        if not saved:
            raise BadBatch(f"{reason}; there is no checkpoint to go back to")
        with keeper.heartbeat.paused():
            progress = checkpoint.load(engine, saved)
        first, back = progress.step, f"; back to {saved}"
        guard.recent = list(progress.recent)
    unwritten = guard.leave_out(first, step, reason, writes=engine.is_first_rank)
    return f"left out: {reason}{back}; the run goes on with step {step + 2}{unwritten}"


def _batch(mixture: Mixture, config: Config, engine: Engine, step: int) -> TokenBatch:
    """This data rank's rows of the global batch of a step."""
    count = config.train.global_batch // engine.layout.data
    first = mixture.first_sample(step) + engine.data_rank * count
    return token_batch(mixture.batch(first, count, config.data.reset_at_documents))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _describe(error: BadBatch, mixture: Mixture, config: Config, step: int) -> str:
    first = mixture.first_sample(step)
    samples = range(first, first + config.train.global_batch)
    names = [mixture.names[mixture.locate(i).source] for i in samples]
    return (
        f"step {step + 1}: {error}; the batch is global samples {samples[0]} to {samples[-1]} "
        f"(sources {', '.join(sorted(set(names)))}); {_last_saved(config.run_dir)}; what a row of "
        f"it is, says python tools/mix_curriculum.py locate {config.run_dir} {step + 1} ROW"
    )


def _last_saved(run_dir: Path) -> str:
    """The newest checkpoint, and whether it is one to go on from."""
    saved = [c for c in checkpoint.checkpoints(run_dir) if not manifest.faults(c)]
    if not saved:
        return "nothing was saved yet"
    rises = [rise(Progress.read(c).recent) for c in saved]
    if rises[-1] < _DIVERGED_NATS:
        return f"the last checkpoint, {saved[-1]}, is intact"
    sound = [c for c, nats in zip(saved, rises, strict=True) if nats < _DIVERGED_NATS]
    return (
        f"the last checkpoint, {saved[-1]}, was saved when the loss had risen by {rises[-1]:.2f} "
        "nats: the run had diverged before it; "
        + (f"{sound[-1]} is older and sound" if sound else "none is older and sound")
    )
