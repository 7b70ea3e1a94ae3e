"""A loss or gradient that is no number stops the step on every rank before anything is updated."""

import pytest
import torch
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine, NonFiniteLoss
from megatron_qwen3.training.objectives import Objective, cross_entropy, per_token

BAD_SEQUENCE, BAD_TOKEN = 5, 500


def nan_loss(outputs, batch):
    bad_BS = batch.tokens_BS == BAD_TOKEN
    return {"nats": -outputs["log_prob"].masked_fill(bad_BS, torch.nan)}


def infinite_slope(outputs, batch):
    """Finite everywhere, but the square root of zero has no finite derivative."""
    bad_BS = batch.tokens_BS == BAD_TOKEN
    return {"nats": -outputs["log_prob"] + (bad_BS * outputs["log_prob"] * 0).sqrt()}


def failing_step(loss, *settings):
    """(message of the failing step, whether weights are as before, loss of a step after it)."""
    base = ["train.steps=2", "train.precision=fp32", "train.global_batch=8", "optim.clip_grad=1.0"]
    config = load([], ["model.preset=tiny-moe", "data.sequence_length=16", *base, *settings])
    engine = Engine(config, start(config))
    tokens_BS = torch.randint(0, 400, (8, 16), generator=torch.Generator().manual_seed(2))
    good = TokenBatch.of(*[tokens_BS.chunk(engine.layout.data)[engine.data_rank]] * 2)
    tokens_BS[BAD_SEQUENCE, 3] = BAD_TOKEN
    bad = TokenBatch.of(*[tokens_BS.chunk(engine.layout.data)[engine.data_rank]] * 2)
    engine.train_step(good, cross_entropy, 1e-3)
    before = weights(engine)
    with pytest.raises(NonFiniteLoss) as raised:
        engine.train_step(bad, Objective(log_probs, loss, {"nats": per_token}), 1e-3)
    same = all(map(torch.equal, weights(engine), before))
    return str(raised.value), same, engine.train_step(good, cross_entropy, 1e-3)["loss"]


def weights(engine):
    engine.model.synchronize()
    return [p.detach().clone() for model in engine.model.chunks for p in model.parameters()]


LAYOUTS = {
    "one-rank": (1, (), 0, 5, "5 to 5"),
    "one-rank-not-full": (1, ("train.micro_batch=5", "train.global_batch=10"), 0, 1, "5 to 7"),
    "dp2-pp2": (4, ("parallel.pipeline=2",), 1, 1, "5 to 5"),
    "tp2-ep2": (2, ("parallel.tensor=2", "parallel.expert=2"), 0, 5, "5 to 5"),
    "dp2-unsharded": (2, ("optim.distributed=false",), 1, 1, "5 to 5"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_nan_loss_names_its_sequences_on_every_rank_and_changes_no_weight(layout):
    ranks, settings, data_rank, micro_batch, sequences = LAYOUTS[layout]
    place = f"data rank {data_rank}, micro-batch {micro_batch} (sequences {sequences}): nan"
    for message, same, loss_after in run_ranks(failing_step, ranks, nan_loss, *settings):
        assert message == f"the loss is not finite at {place}"
        assert same
        assert loss_after == pytest.approx(6.2, abs=0.3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_infinite_gradient_of_a_finite_loss_changes_no_weight(layout):
    ranks, settings, *_ = LAYOUTS[layout]
    for message, same, loss_after in run_ranks(failing_step, ranks, infinite_slope, *settings):
        assert "gradient norm is nan" in message
        assert same
        assert loss_after == pytest.approx(6.2, abs=0.3)
