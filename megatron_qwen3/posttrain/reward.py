"""Trains a reward model: it gives an answer one number, by which two answers are compared.

    python -m megatron_qwen3.train examples/stages/reward_model.toml MODEL.toml

The run begins with a language model (checkpoint.init_from), whose output layer a fresh scalar head
replaces, and trains it on pairs (`rows/`). The loop is `rows/row_loop.py`'s; `mq3 score` scores
answers with the trained model.
"""

from functools import partial

from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.posttrain.rows import row_order
from megatron_qwen3.posttrain.rows.bradley_terry import over_pairs
from megatron_qwen3.posttrain.rows.held_out_pairs import evaluate
from megatron_qwen3.posttrain.rows.pair_mixture import PairMixture
from megatron_qwen3.posttrain.rows.pair_rows import PairRows
from megatron_qwen3.posttrain.rows.row_loop import train_rows
from megatron_qwen3.settings import Config
from megatron_qwen3.training import origin, reader, tokenizer_check
from megatron_qwen3.training.run import Run


def check(config: Config) -> PairMixture:
    """The rows that a run trains on. ConfigError, before any rank starts, for every fault of
    settings and sets."""
    reader.check(config)
    step = origin.check(config).step
    tokenizer_check.check_size(config)
    mixture = PairMixture(config)
    row_order.check(config.run_dir, step, mixture.facts)
    return mixture


def run(config: Config, layout: Layout, inputs: PairMixture) -> bool:
    """Train a reward model on this rank; False where it stopped early, to be continued.

    Raises ConfigError where no checkpoint is intact; BadBatch, SaveFailed, EvaluationFailed: the
    run stopped and needs a person to look.
    """
    mixture = inputs
    with Run(config, layout) as run:
        objective = over_pairs(config.reward.centering)
        read = PairRows(config, run.engine.share, mixture)
        judge = partial(evaluate, run.engine.model, mixture, config)
        train_rows(run, mixture, objective, read, judge)
    return run.is_done
