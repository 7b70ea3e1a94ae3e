"""Padding counts for nothing: not in the loss, not in the router's balance, not in a metric."""

import functools

import pytest
import torch
from ranks import run_ranks
from shards import assemble, difference, local_shards

from megatron_qwen3.config import load
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.bad_batch import BadBatch
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy

ROWS, POSITIONS, PADDED, STEPS = 6, 20, 32, 2
SETTINGS = (
    "model.preset=tiny-moe",
    "model.router_aux_loss=0.5",
    "train.steps=2",
    "train.precision=fp32",
    f"data.sequence_length={PADDED}",
    "optim.distributed=false",
    "optim.clip_grad=0.0",
    "optim.eps=1e-6",
)


def texts(length):
    """Tokens and labels of each step, int64 [ROWS, length]; places after POSITIONS are padding."""
    for step in range(STEPS):
        random = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 512, (ROWS, POSITIONS + 1), generator=random)
        filling = torch.randint(0, 512, (ROWS, length - POSITIONS), generator=random)
        yield torch.cat([ids, filling], 1)


def batches(length):
    for ids in texts(length):
        valid_BS = (torch.arange(length) < POSITIONS).expand(ROWS, length)
        tokens_BS, labels_BS = ids[:, :-1], ids[:, 1:].contiguous()
        without_padding = None if length == POSITIONS else valid_BS
        yield tokens_BS, labels_BS, valid_BS.float(), None, without_padding


def trained(lengths, *settings):
    """Of rows of each length: metrics and gradients of two steps."""
    config = load([], [*SETTINGS, *settings])
    layout = start(config)
    results = []
    for length in lengths:
        engine = Engine(config, layout)
        run = {"metrics": [], "gradients": []}
        for whole in batches(length):
            mine = (x if x is None else x.chunk(layout.data)[engine.data_rank] for x in whole)
            run["metrics"].append(engine.train_step(TokenBatch(*mine), cross_entropy, 1e-3))
            run["gradients"].append(
                local_shards(engine.model.chunks, lambda p: getattr(p, "main_grad", None))
            )
        results.append(run)
    return results


THIS_BATCH = "model.router_balance=this_batch"


@functools.cache
def without_padding(*settings):
    (result,) = run_ranks(trained, 1, [POSITIONS], "train.micro_batch=1", *settings)[0]
    return result


LAYOUTS = {
    "selective": (1, "train.micro_batch=4", "parallel.recompute=selective"),
    "dp2-this-batch": (2, "train.micro_batch=2", THIS_BATCH),
    "tp2-full": (2, "train.micro_batch=4", "parallel.tensor=2", "parallel.recompute=full"),
    "pp2-vpp2": (2, "train.micro_batch=2", "parallel.pipeline=2", "parallel.virtual_pipeline=2"),
    "cp2-ep2": (2, "train.micro_batch=2", "parallel.context=2", "parallel.expert=2"),
}
SLOW_LAYOUTS = {
    "tp2-ep2-selective": (
        2,
        "train.micro_batch=4",
        "parallel.tensor=2",
        "parallel.expert=2",
        "parallel.recompute=selective",
    ),
    "cp2-tp2-this-batch": (
        4,
        "train.micro_batch=4",
        "parallel.context=2",
        "parallel.tensor=2",
        "parallel.recompute=full",
        THIS_BATCH,
    ),
    "ep2-full": (2, "train.micro_batch=2", "parallel.expert=2", "parallel.recompute=full"),
    "pp2-tp2-full": (
        4,
        "train.micro_batch=4",
        "parallel.tensor=2",
        "parallel.pipeline=2",
        "parallel.recompute=full",
        THIS_BATCH,
    ),
}


@pytest.mark.parametrize(
    "layout",
    [*LAYOUTS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_LAYOUTS)],
)
def test_rows_and_positions_of_padding_change_neither_loss_nor_gradient_nor_metric(layout):
    ranks, *settings = (LAYOUTS | SLOW_LAYOUTS)[layout]
    results = run_ranks(trained, ranks, [POSITIONS, PADDED], *settings)
    expected = without_padding(*{THIS_BATCH}.intersection(settings))
    for of_ranks in zip(*results, strict=True):
        for step in range(STEPS):
            metrics = [run["metrics"][step] for run in of_ranks]
            assert all(other == metrics[0] for other in metrics)
            assert metrics[0] == pytest.approx(expected["metrics"][step], rel=2e-6)
            gradients = assemble([run["gradients"][step] for run in of_ranks])
            relative, name = difference(gradients, assemble([expected["gradients"][step]]))
            assert relative < 1e-5, (step, name)


def loss_and_scores(*settings):
    config = load([], [*SETTINGS, *settings])
    engine = Engine(config, start(config))
    ids = next(texts(POSITIONS))[:3]
    batch = TokenBatch.of(ids[:, :-1], ids[:, 1:].contiguous())
    scores_BS = engine.model.score(batch, log_probs)["log_prob"]
    return engine.train_step(batch, cross_entropy, 0.0)["loss"], scores_BS


def test_no_row_is_dropped_where_the_micro_batch_does_not_divide_them():
    ((loss, scores_BS),) = run_ranks(loss_and_scores, 1, "train.micro_batch=2")
    assert scores_BS.shape[0] == 3
    assert loss == pytest.approx(-scores_BS.mean().item(), rel=1e-6)


def nothing_trained(*settings):
    """The error without a trained position, before a pass; and the loss of a step after it."""
    config = load([], [*SETTINGS, *settings])
    engine = Engine(config, start(config))
    ids = next(texts(POSITIONS)).chunk(engine.layout.data)[engine.data_rank]
    batch = TokenBatch.of(ids[:, :-1], ids[:, 1:].contiguous())
    schedule, engine.model.run_schedule = engine.model.run_schedule, None
    untrained = TokenBatch(batch.tokens_BS, batch.labels_BS, torch.zeros(ids[:, 1:].shape))
    with pytest.raises(BadBatch) as raised:
        engine.train_step(untrained, cross_entropy, 1e-3)
    engine.model.run_schedule = schedule
    # One data rank without a trained position is none: the others train.
    mine = batch if engine.data_rank == 0 else untrained
    return str(raised.value), engine.train_step(mine, cross_entropy, 1e-3)["loss"]


def test_a_batch_without_a_trained_position_is_bad_on_every_rank_before_any_pass():
    results = run_ranks(nothing_trained, 4, "parallel.pipeline=2")
    for told, loss in results:
        assert told == "no position of the global batch has a weight in the loss"
        assert loss == results[0][1] == pytest.approx(6.2, abs=0.3)
