"""Supervised fine-tuning: trains the assistant's own tokens of rows of dialogs.

    python -m megatron_qwen3.train examples/stages/post_1_cold_start.toml MODEL.toml

The loop (`rows/row_loop.py`) is pretraining's with other rows (`rows/`): samples packed by best
fit, a function of the step, so that a run resumes to the bit. Cold start, fusion of the two modes
and off-policy distillation are stages of it: other data, another objective.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from megatron_qwen3.model.distributions import top_k
from megatron_qwen3.model.outputs import Outputs, log_probs
from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.posttrain import kept_models
from megatron_qwen3.posttrain.rows import row_order, soft_targets
from megatron_qwen3.posttrain.rows.dialog_mixture import DialogMixture
from megatron_qwen3.posttrain.rows.dialog_rows import DialogRows
from megatron_qwen3.posttrain.rows.held_out_loss import evaluate
from megatron_qwen3.posttrain.rows.row_loop import train_rows
from megatron_qwen3.posttrain.teachers import distill
from megatron_qwen3.posttrain.teachers.teacher import Teacher
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_posttrain import SftConfig
from megatron_qwen3.training import origin, reader, tokenizer_check
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.objectives import Mean, Objective, Values, per_token
from megatron_qwen3.training.run import Run
from megatron_qwen3.validate_posttrain import TAUGHT


def check(config: Config) -> DialogMixture:
    """The rows that a run trains on. ConfigError, before any rank starts, for every fault of
    settings and sets."""
    reader.check(config)
    step = origin.check(config).step
    tokenizer_check.check_size(config)
    mixture = DialogMixture(config)
    row_order.check(config.run_dir, step, mixture.facts)
    if config.sft.objective in TAUGHT:
        kept_models.check(config)
        soft_targets.check(config, mixture)
    return mixture


def run(config: Config, layout: Layout, inputs: DialogMixture) -> bool:
    """Train a stage on this rank; False where it stopped early, to be continued.

    Raises ConfigError where no checkpoint is intact; BadBatch, SaveFailed, EvaluationFailed: the
    run stopped and needs a person to look.
    """
    mixture = inputs
    with Run(config, layout) as run:
        of_first(partial(kept_models.write, config))
        with run.waiting():  # loading a teacher takes long: it grows with its files
            stored, teacher = soft_targets.sources(config, layout, mixture, run.engine.data_rank)
        read = DialogRows(config, run.engine.share, mixture, stored)
        judge = partial(evaluate, run.engine.model, mixture, config)
        taught = partial(_taught, teacher, mixture, config) if teacher else None
        train_rows(run, mixture, objective(config), read, judge, taught)
    return run.is_done


def objective(config: Config) -> Objective:
    """The objective of sft.objective and optim.z_loss; the rows' weights make its mean that of
    sft.loss.

    Metrics: trained_tokens of the global batch, and `filled`, the share of its places that are not
    padding; with a teacher, those of `distill.distilled`.
    """
    base, coefficient = _of_tokens(config.sft), config.optim.z_loss

    def values(outputs: Outputs, batch: TokenBatch) -> Values:
        found = {**base.values(outputs, batch), **_counted(batch)}
        if coefficient:
            found["z_loss"] = coefficient * outputs["log_z"].square()
        return found

    losses = {**base.losses, **({"z_loss": per_token} if coefficient else {})}
    return Objective(base.head, values, losses, {**base.metrics, **COUNTS})


def _of_tokens(sft: SftConfig) -> Objective:
    """The loss per token of sft.objective.

    dft weighs its cross-entropy by its probability, which is not differentiated (arXiv 2508.05629).
    """
    name, teacher = sft.objective, sft.teacher
    if name in TAUGHT:
        share = teacher.share if name == "both" else 1.0
        return distill.distilled(teacher.top_k, teacher.temperature, share)

    def values(outputs: Outputs, _: TokenBatch) -> Values:
        nats_BS = -outputs["log_prob"]
        return {name: nats_BS * outputs["log_prob"].detach().exp() if name == "dft" else nats_BS}

    return Objective(log_probs, values, {name: per_token})


def _counted(batch: TokenBatch) -> dict[str, Tensor]:
    valid_BS = batch.valid_BS
    ones_BS = torch.ones_like(batch.weights_BS)
    return {"trained_tokens": ones_BS, "filled": ones_BS if valid_BS is None else valid_BS.float()}


def _is_trained(batch: TokenBatch) -> Tensor:
    return (batch.weights_BS != 0).float()


def _all(batch: TokenBatch) -> Tensor:
    return torch.ones_like(batch.weights_BS)


COUNTS: Mapping[str, Mean] = {
    "trained_tokens": Mean(_is_trained, count=1.0),
    "filled": Mean(_all),
}


def _taught(
    teacher: Teacher, mixture: DialogMixture, config: Config, step: int, batch: TokenBatch
) -> TokenBatch:
    asked = config.sft.teacher
    head = top_k(asked.top_k, asked.temperature)
    found = teacher.scores(batch, head, partial(_rows, mixture, config, step))
    here = batch.to(teacher.model.device)
    return distill.with_targets(here, found["ids"], found["log_probs"], found["log_rest"])


def _rows(mixture: DialogMixture, config: Config, step: int, first: int, count: int) -> TokenBatch:
    """Rows [first, first + count) of the global batch of a step."""
    return TokenBatch.of_arrays(DialogRows(config, range(first, first + count), mixture)(step))
