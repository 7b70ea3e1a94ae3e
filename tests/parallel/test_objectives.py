"""An objective of several named means: its gradient is that of the global means, in any layout."""

from dataclasses import replace

import pytest
import torch
from layouts import assert_same, local_shards
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.bad_batch import BadBatch
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.objectives import (
    Mean,
    Objective,
    cross_entropy,
    per_sequence,
    per_token,
    with_z_loss,
)

ROWS, POSITIONS, VOCABULARY = 8, 16, 512


def values(outputs, batch):
    """Cross-entropy, a squared distance from other log-probabilities, and one number of a row."""
    log_prob_BS = outputs["log_prob"]
    of_row_B = (log_prob_BS * batch.weights_BS).sum(1)
    return {
        "cross_entropy": -log_prob_BS,
        "distance": 0.3 * (log_prob_BS - batch.extra["theirs"]).square(),
        "row": -torch.nn.functional.logsigmoid(0.1 * of_row_B),
        "log_z": outputs["log_z"],
    }


def kept(batch):
    return batch.extra["kept"]


MIXED = Objective(
    log_probs,
    values,
    {"cross_entropy": per_token, "distance": Mean(kept, count=100.0), "row": per_sequence},
    {"log_z": per_token},
)


def whole_batch():
    random = torch.Generator().manual_seed(11)
    ids = torch.randint(0, VOCABULARY, (ROWS, POSITIONS + 1), generator=random)
    weights = torch.rand(ROWS, POSITIONS, generator=random)
    weights[2] = 0  # a row that nothing is trained of
    weights[5, 3:] = 0
    theirs = -torch.rand(ROWS, POSITIONS, generator=random) * 6
    kept = (torch.rand(ROWS, POSITIONS, generator=random) < 0.5).float()
    extra = {"theirs": theirs, "kept": kept}
    return TokenBatch(ids[:, :-1], ids[:, 1:], weights, extra=extra)


def tiny(*settings):
    base = ["train.precision=fp32", f"train.global_batch={ROWS}", "train.steps=1"]
    base += ["model.preset=tiny-dense", "optim.distributed=false", "optim.clip_grad=1e9"]
    return load([], [*base, f"data.sequence_length={POSITIONS}", *settings])


def stepped(*settings):
    """Metrics and gradients of one step of the engine."""
    config = tiny(*settings)
    engine = Engine(config, start(config))
    rows = ROWS // engine.layout.data
    mine = list(whole_batch().split(rows))[engine.data_rank]
    metrics = engine.train_step(mine, MIXED, 0.0)
    return metrics, local_shards(engine.model.chunks, lambda p: getattr(p, "main_grad", None))


def by_autograd():
    """The same from the definition: all rows at once, each mean written out."""
    config = tiny()
    (model,), batch = Model(config, start(config)).chunks, whole_batch()
    outputs = log_probs.compute(model(batch.tokens_BS), batch)
    log_prob, weights, kept = outputs["log_prob"], batch.weights_BS, batch.extra["kept"]
    means = {"cross_entropy": -(log_prob * weights).sum() / weights.sum()}
    apart = (log_prob - batch.extra["theirs"]).square()
    means["distance"] = 0.3 * (apart * kept).sum() / 100
    trained = [b for b in range(ROWS) if weights[b].any()]
    of_rows = torch.stack([0.1 * (log_prob[b] * weights[b]).sum() for b in trained])
    means["row"] = -of_rows.sigmoid().log().mean()
    loss = sum(means.values())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    named = dict(zip((id(p) for p in model.parameters()), gradients, strict=True))
    metrics = {name: x.item() for name, x in means.items()} | {"loss": loss.item()}
    metrics["log_z"] = ((outputs["log_z"] * weights).sum() / weights.sum()).item()
    return metrics, local_shards([model], lambda p: named.get(id(p)))


LAYOUTS = {
    "one-rank": (1, ()),
    "micro-batches": (1, ("train.micro_batch=4",)),
    "dp4": (4, ("train.micro_batch=2",)),
    "tp2-pp2": (4, ("parallel.tensor=2", "parallel.pipeline=2", "train.micro_batch=2")),
}


@pytest.fixture(scope="module")
def expected():
    return run_ranks(by_autograd, 1)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_several_means_at_once_have_the_gradient_of_their_definition(layout, expected):
    ranks, settings = LAYOUTS[layout]
    results = run_ranks(stepped, ranks, *settings)
    metrics, gradients = expected
    for told, _ in results:
        assert {name: told[name] for name in metrics} == pytest.approx(metrics, rel=1e-5)
        assert set(told) == {*metrics, "grad_norm"}
    assert_same([shards for _, shards in results], gradients, "gradients")


def refused():
    """What is raised for batches and objectives that cannot be trained; a good step goes on."""
    config = tiny()
    engine = Engine(config, start(config))
    good = list(whole_batch().split(ROWS // engine.layout.data))[engine.data_rank]
    schedule, engine.model.run_schedule = engine.model.run_schedule, None  # nothing may reach it

    def told(error, objective=MIXED, **changes):
        with pytest.raises(error) as raised:
            engine.train_step(replace(good, **changes), objective, 0)
        return str(raised.value)

    beyond, behind = good.labels_BS.clone(), good.tokens_BS.clone()
    trained = good.weights_BS.nonzero()[0]
    beyond[tuple(trained)], behind[0, 0] = VOCABULARY, -1
    fewer = good if engine.data_rank else next(good.split(good.rows // 2))
    shorter = good.tokens_BS[:, :-1]

    def rows_of(outputs, batch):
        return {"row": outputs["log_prob"].sum(1)}

    messages = [
        told(BadBatch, labels_BS=beyond),
        told(BadBatch, tokens_BS=behind),
        told(BadBatch, weights_BS=0 * good.weights_BS, objective=cross_entropy),
        told(ValueError, labels_BS=shorter),
        told(ValueError, extra={"kept": good.weights_BS[:-1]}),
        told(ValueError, objective=Objective(log_probs, rows_of, {"row": per_token})),
        told(ValueError, objective=Objective(log_probs, rows_of, {"rank": per_sequence})),
    ]
    if engine.layout.data > 1:
        with pytest.raises(ValueError) as raised:
            engine.train_step(fewer, MIXED, 0)
        messages.append(str(raised.value))
    engine.model.run_schedule = schedule
    return messages, engine.train_step(good, MIXED, 0.0)["loss"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_cannot_be_trained_is_named_on_every_rank_before_any_pass(ranks, expected):
    results = run_ranks(refused, ranks)
    for messages, loss in results:
        beyond, behind, untrained, shorter, fewer, shape, name, *ranks_apart = messages
        assert "token or label that is no id of a vocabulary of 512" in beyond
        assert beyond.startswith(f"{ranks:,} positions") and behind.startswith(f"{ranks:,} pos")
        assert untrained == "no position of the global batch has a weight in the loss"
        assert "labels_BS has shape" in shorter and "extra kept has shape" in fewer
        assert "the objective's row has shape [1] for one row of 16 positions" in shape
        assert name == "the objective gives no rank; it gives row"
        assert all("differently many sequences" in text for text in ranks_apart)
        assert loss == pytest.approx(expected[0]["loss"], rel=1e-5)


def with_and_without_z_loss():
    """Metrics of the same step, with the z-loss and without, and log z of every position."""
    config = tiny()
    engine, batch = Engine(config, start(config)), whole_batch()
    log_z_BS = engine.model.score(batch, log_probs)["log_z"]
    both = [engine.train_step(batch, x, 0.0) for x in (with_z_loss(1e-3), cross_entropy)]
    return *both, (batch.weights_BS * log_z_BS.square()).sum() / batch.weights_BS.sum()


def test_cross_entropy_and_z_loss_are_told_apart_and_add_up_to_the_loss():
    ((apart, alone, mean_square),) = run_ranks(with_and_without_z_loss, 1)
    assert set(alone) == {"loss", "grad_norm"}
    assert apart["cross_entropy"] == pytest.approx(alone["loss"], rel=1e-6)
    assert apart["z_loss"] == pytest.approx(1e-3 * mean_square.item(), rel=1e-5)
    assert apart["loss"] == pytest.approx(apart["cross_entropy"] + apart["z_loss"], rel=1e-6)


@pytest.mark.parametrize("count", [0, -1.0, float("nan")])
def test_a_mean_divides_by_no_count_that_is_none(count):
    with pytest.raises(ValueError, match="a mean divides by count = .*; valid: above 0"):
        Mean(kept, count=count)
