"""Pretraining: read, step, log, evaluate, save, until the stage's tokens are used up.

A stage is a TOML file, not a class: stage 2 is this loop with stage 1's weights as its start
(checkpoint.init_from), its own mixture, schedule, sequence length and RoPE base.
"""

import time
from typing import NamedTuple

import torch

from megatron_qwen3.config import Config, ConfigError, to_toml
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.pretrain import record
from megatron_qwen3.pretrain.check import check_inputs
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.evaluate import evaluate
from megatron_qwen3.training import checkpoint, losses, saver
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine, NonFiniteLoss
from megatron_qwen3.training.metrics import RunLog
from megatron_qwen3.training.optim import learning_rate


class Inputs(NamedTuple):
    """What the run is fed after `step` steps, and the record of it."""

    step: int
    mixture: Mixture
    record: record.Record


def check(config: Config) -> Inputs:
    """Everything that can be wrong with the inputs, before any rank starts: ConfigError."""
    before = None
    if config.checkpoint.init_from:
        source = checkpoint.find(config.checkpoint.init_from)
        checkpoint.check_same_model(config, source)
        if source.name.startswith("step_"):
            before = (source.parents[1], checkpoint.step_of(source))
    saved = checkpoint.newest(config.run_dir)
    if saved and not config.checkpoint.resume:
        raise ConfigError(
            f"checkpoint.resume = false, but {config.run_dir} holds {saved.name}; "
            "delete the folder or choose another run.name"
        )
    if saved:
        checkpoint.check_same_model(config, saved)
    step = checkpoint.step_of(saved) if saved else 0
    history = record.prepare(config, step, before)
    mixture = Mixture(history.parts[-1])
    check_inputs(config, mixture)
    return Inputs(step, mixture, history)


def run(config: Config, layout: Layout, inputs: Inputs) -> None:
    """Train one stage to its last step, from the newest checkpoint of the run folder if any."""
    engine = Engine(config, layout)
    step, origin = _start(engine, config)
    if step != inputs.step:  # a checkpoint proved damaged only when it was read
        inputs = check(config)
    mixture = inputs.mixture
    if engine.is_first_rank:
        config.run_dir.mkdir(parents=True, exist_ok=True)
        (config.run_dir / "config.toml").write_text(to_toml(config), encoding="utf-8")
        inputs.record.write(config.run_dir)
    loss = losses.cross_entropy
    if config.optim.z_loss:
        loss = losses.cross_entropy_with_z_loss(config.optim.z_loss)
    with RunLog(config, layout, first_step=step, is_writer=engine.is_first_rank) as log:
        log.note(origin)
        if step and inputs.record.parts[-1].first_step == step:
            log.note("another mixture from here on; every source goes on where it stood")
        while step < config.steps:
            began = time.perf_counter()
            batch = _batch(mixture, config, engine, step)
            rate = learning_rate(config, step)
            try:
                metrics = engine.train_step(batch, loss, rate)
            except NonFiniteLoss as error:
                raise NonFiniteLoss(_describe(error, mixture, config, step)) from None
            step += 1
            log.train(step, metrics, rate, time.perf_counter() - began)
            last = step == config.steps
            if last or _due(step, config.eval.every_steps):
                log.evaluation(step, evaluate(engine, mixture, config))
            if (last and config.checkpoint.at_end) or _due(step, config.checkpoint.every_steps):
                log.note(f"saved {saver.save(engine, config, step)}")


def _start(engine: Engine, config: Config) -> tuple[int, str]:
    """Load what the run goes on from: the steps done, and a line that says where they came from."""
    saved, told = checkpoint.newest_intact(config.run_dir, config.checkpoint.verify == "full")
    if saved:
        return checkpoint.load(engine, saved).step, "\n".join([*told, f"resumed from {saved}"])
    if config.checkpoint.init_from:
        source = checkpoint.find(config.checkpoint.init_from)
        checkpoint.load_weights(engine, source)
        return 0, f"weights from {source}"
    return 0, f"fresh weights from seed {config.run.seed}"


def _batch(mixture: Mixture, config: Config, engine: Engine, step: int) -> TokenBatch:
    """This data rank's rows of the global batch of a step."""
    count = config.train.global_batch // engine.layout.data
    first = mixture.first_sample(step) + engine.data_rank * count
    rows = mixture.batch(first, count, with_positions=config.data.reset_at_documents)
    positions_BS = None if rows.positions_BS is None else torch.from_numpy(rows.positions_BS)
    tokens_BS, labels_BS = torch.from_numpy(rows.tokens_BS), torch.from_numpy(rows.labels_BS)
    return TokenBatch.of(tokens_BS, labels_BS, positions_BS)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _describe(error: NonFiniteLoss, mixture: Mixture, config: Config, step: int) -> str:
    first = mixture.first_sample(step)
    samples = range(first, first + config.train.global_batch)
    names = [mixture.names[mixture.locate(i).source] for i in samples]
    saved = checkpoint.checkpoints(config.run_dir)
    intact = (
        f"; the last checkpoint, {saved[-1]}, is intact" if saved else "; nothing was saved yet"
    )
    return (
        f"step {step + 1}: {error}; the batch is global samples {samples[0]} to {samples[-1]} "
        f"(sources {', '.join(sorted(set(names)))}){intact}; what a row of it is, says "
        f"python tools/mix_curriculum.py locate {config.run_dir} {step + 1} ROW"
    )
