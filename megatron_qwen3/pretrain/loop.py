"""Pretraining: read, step, log, evaluate, save, until the stage's tokens are used up.

A stage is a TOML file, not a class: stage 2 is this loop with stage 1's weights as its start
(checkpoint.init_from), its own mixture, schedule, sequence length and RoPE base.
"""

from functools import partial
from typing import NamedTuple

from megatron_qwen3.config import Config
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.pretrain import record
from megatron_qwen3.pretrain.check import check_inputs
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.evaluate import evaluate
from megatron_qwen3.pretrain.evaluated import evaluated
from megatron_qwen3.pretrain.rows import StepRows
from megatron_qwen3.training import objectives, origin, reader
from megatron_qwen3.training.bad_batch import BadBatch
from megatron_qwen3.training.progress import steps_of
from megatron_qwen3.training.run import Run


class Inputs(NamedTuple):
    """The run's data after `step` steps, and their record."""

    step: int
    mixture: Mixture
    record: record.RunRecord


def check(config: Config) -> Inputs:
    """The run's inputs. ConfigError, before any rank starts, for every fault of them."""
    reader.check(config)
    begins = origin.check(config)
    history = record.prepare(config, begins.step, begins.before)
    mixture = Mixture(history.parts[-1])
    check_inputs(config, mixture)
    return Inputs(begins.step, mixture, history)


def run(config: Config, layout: Layout, inputs: Inputs) -> bool:
    """Train a stage on this rank; False where it stopped early, to be continued.

    Raises ConfigError where no checkpoint is intact; BadBatch, SaveFailed, EvaluationFailed: the
    run stopped and needs a person to look.
    """
    with Run(config, layout) as run:
        if run.start.step != inputs.step:  # damage of a checkpoint showed only when it was read
            inputs = check(config)
        _, mixture, history = inputs
        _begin(run, history)
        z_loss = config.optim.z_loss
        objective = objectives.with_z_loss(z_loss) if z_loss else objectives.cross_entropy
        read = StepRows(mixture, run.engine.share, config.data.reset_at_documents)
        with reader.of_arrays(read, config, run.engine.device) as batches:
            held_out = evaluated(mixture, config)
            for step in run.steps(partial(evaluate, run.engine.model, held_out, config)):
                batch = batches.batch(step, then=run.next_step(step + 1))
                tokens = history.tokens_after(step + 1, steps_of(run.left_out))
                try:
                    run.train(step, batch, objective, tokens)
                except BadBatch as error:
                    run.leave_out(step, _describe(error, mixture, config, step))
    return run.is_done


def _begin(run: Run, history: record.RunRecord) -> None:
    if run.engine.is_first_rank:
        history.write(run.config.run_dir)
    for line in history.news:
        run.log.note(line)


def _describe(error: BadBatch, mixture: Mixture, config: Config, step: int) -> str:
    first = mixture.first_sample(step)
    samples = range(first, first + config.train.global_batch)
    names = [mixture.names[mixture.locate(i).source] for i in samples]
    return (
        f"{error}; the batch is global samples {samples[0]} to {samples[-1]} (sources "
        f"{', '.join(sorted(set(names)))}); mq3 data mix locate "
        f"{config.run_dir} {step + 1} ROW finds the text of a row"
    )
