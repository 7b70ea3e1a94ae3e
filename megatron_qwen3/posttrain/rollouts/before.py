"""Log-probs of a batch of rollouts before its first update: the policy's own, and a reference's.

    rows = [rows of each update, None for an empty one]
    old_T = own(config, model, record, rows)          # stored beside the record, or read there
    reference_T = scored(reference, rows, record, temperature)

They cover all tokens [T], so that a run that resumes within a batch, even in another layout, has
the same numbers that the batch began with.

Legend: T tokens of all rollouts, R rows, S positions.
"""

from collections.abc import Callable, Sequence

import numpy as np

from megatron_qwen3.model.outputs import Head, log_probs
from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.posttrain.rollouts.record import Array, RolloutRecord, folder_of
from megatron_qwen3.posttrain.rollouts.record_files import read_old, write_old
from megatron_qwen3.posttrain.rollouts.rows import RolloutRows
from megatron_qwen3.settings import Config
from megatron_qwen3.training.model import Model


def are_needed(config: Config) -> bool:
    """Whether the policy's log-probs have to be computed beforehand. The first update of a batch
    needs none: its own forward pass gives the log-probs before it."""
    rl = config.rl
    return rl.updates > 1 or rl.loss.rejection != "none" or penalizes(config)


def penalizes(config: Config) -> bool:
    """Whether the divergence from the reference is subtracted from rewards."""
    return config.rl.kl.coefficient > 0 and config.rl.kl.place == "reward"


def own(
    config: Config,
    model: Model,
    record: RolloutRecord,
    rows: Sequence[RolloutRows | None],
    alive: Callable[[], None] = lambda: None,
) -> Array:
    """The policy's log-probs, float32 [T], on all ranks; computed once per batch."""
    folder, tokens = folder_of(config.run_dir, record.batch), len(record.log_probs)
    kept: Array | None = of_first(lambda: read_old(folder, tokens))
    if kept is None:
        kept = scored(model, rows, record, config.rollouts.temperature, alive)
        found = kept
        of_first(lambda: write_old(folder, found))
    return kept


def scored(
    model: Model,
    rows: Sequence[RolloutRows | None],
    record: RolloutRecord,
    temperature: float,
    alive: Callable[[], None] = lambda: None,
) -> Array:
    """log p of all tokens in the rows under a model, at a temperature, float32 [T]; 0 elsewhere.
    alive: called before the rows of each update."""
    head, found_T = tempered(temperature), np.zeros(len(record.log_probs), np.float32)
    for update in rows:
        if update is not None:
            alive()
            batch = update.batch(model.data_rank, {}, {})
            log_prob_RS = model.score(batch, head)["log_prob"]
            update.spread(model.gather_over_data(log_prob_RS).cpu().numpy(), found_T)
    return found_T


def tempered(temperature: float) -> Head:
    """`log_probs` of logits divided by a temperature."""
    return log_probs._replace(
        compute=lambda logits, batch: log_probs.compute(logits.tempered(temperature), batch)
    )
