"""An objective of several named means: its gradient is that of the global means, in any layout."""

from dataclasses import replace

import pytest
import torch
from layouts import assert_same, local_shards
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.model.distributions import at_ids, top_k
from megatron_qwen3.model.outputs import log_probs, scalar
from megatron_qwen3.model.router import balance_metrics
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.bad_batch import BadBatch
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.metrics import speed
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.objectives import (
    RESERVED,
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
    "not-full": (1, ("train.micro_batch=5", "train.global_batch=10")),
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
    """Errors of batches and objectives that cannot be trained; a good step goes on."""
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
    shorter = good.tokens_BS[:, :-1]
    valid = torch.ones_like(good.tokens_BS, dtype=torch.bool)
    valid[tuple(trained)] = False

    def rows_of(outputs, batch):
        return {"row": outputs["log_prob"].sum(1)}

    def of_all(outputs, batch):
        return {"all": outputs["log_prob"].mean().view(1)}

    def constant(outputs, batch):
        return {"constant": -outputs["log_prob"].detach()}

    def ignored(outputs, batch):
        return {"x": outputs["log_z"]}

    messages = [
        told(BadBatch, labels_BS=beyond),
        told(BadBatch, tokens_BS=behind),
        told(BadBatch, weights_BS=0 * good.weights_BS, objective=cross_entropy),
        told(ValueError, labels_BS=shorter),
        told(ValueError, extra={"kept": good.weights_BS[:-1]}),
        told(ValueError, objective=Objective(log_probs, rows_of, {"row": per_token})),
        told(ValueError, objective=Objective(log_probs, rows_of, {"rank": per_sequence})),
        told(ValueError, objective=Objective(log_probs, of_all, {"all": per_sequence})),
        told(ValueError, objective=Objective(log_probs, constant, {"constant": per_token})),
        told(ValueError, objective=Objective(at_ids(4), ignored, {"x": per_token})),
        told(ValueError, objective=Objective(top_k(513), ignored, {"x": per_token})),
        told(ValueError, objective=Objective(scalar, ignored, {"x": per_token})),
        told(ValueError, valid_BS=valid),
    ]
    engine.model.run_schedule = schedule
    return messages, engine.train_step(good, MIXED, 0.0)["loss"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_cannot_be_trained_is_named_on_every_rank_before_any_pass(ranks, expected):
    results = run_ranks(refused, ranks)
    for messages, loss in results:
        beyond, behind, untrained, shorter, fewer, shape, name, *others = messages
        assert "token or label that is no id of a vocabulary of 512" in beyond
        assert beyond.startswith(f"{ranks:,} positions") and behind.startswith(f"{ranks:,} pos")
        assert untrained == "no position of the global batch has a weight in the loss"
        assert "labels_BS has shape" in shorter and "extra kept has shape" in fewer
        assert "the objective's row has shape [2] for 2 rows of 16 positions" in shape
        assert name == "the objective gives no rank; it gives row"
        constant_shape, without_gradient, needed, too_many, head, padding = others
        assert "the objective's all has shape [1] for 2 rows" in constant_shape
        assert without_gradient.startswith("the objective's constant has no gradient")
        assert needed == f"extra ids is not there; the head needs [{ROWS // ranks}, 16, 4]"
        assert too_many.startswith("the 513 most probable of 512 tokens")
        assert 'scalar: of a model with model.head = "scalar"' in head
        assert padding == f"{ranks} positions have a weight in the loss and are padding"
        assert loss == pytest.approx(expected[0]["loss"], rel=1e-5)


def refused_by_one():
    """Each rank's error where the second data rank alone has a batch that cannot be computed."""
    config = tiny("train.micro_batch=4", "parallel.pipeline=2")
    engine = Engine(config, start(config))
    good = list(whole_batch().split(4))[engine.data_rank]
    bad_ids = good.tokens_BS + VOCABULARY

    def told(call, *args):
        with pytest.raises((ValueError, KeyError)) as raised:
            call(*args)
        return str(raised.value)

    def of_second(**changes):
        return replace(good, **changes) if engine.data_rank else good

    def train(batch):
        engine.train_step(batch, MIXED, 0.0)

    messages = {
        "fewer": told(train, next(good.split(3)) if engine.data_rank else good),
        "lacking": told(train, of_second(extra={"theirs": good.extra["theirs"]})),
        "ids": told(engine.model.score, of_second(tokens_BS=bad_ids), log_probs),
        "needs": told(engine.model.score, of_second(extra={"ids": bad_ids[..., None]}), at_ids(1)),
    }
    return engine.data_rank, messages


def test_what_one_data_rank_cannot_compute_stops_all_before_any_pass():
    for data_rank, told in run_ranks(refused_by_one, 4, timeout_seconds=60):
        another = "another data rank got a batch that cannot be computed: see that rank's own error"
        assert "different numbers of sequences" in told["fewer"]
        assert ("kept" in told["lacking"]) if data_rank else (told["lacking"] == another)
        assert told["ids"] == (OUTSIDE if data_rank else another)
        assert told["needs"] == (another if data_rank else LACKING)


OUTSIDE = "64 positions have a token or label that is no id of a vocabulary of 512"
LACKING = "extra ids is not there; the head needs [4, 16, 1]"


def odd_lengths(parallel):
    """The errors of both ways through a model for rows that two tensor ranks do not divide."""
    config = tiny("train.micro_batch=4", *parallel)
    engine, batch = Engine(config, start(config)), whole_batch()
    odd = replace(
        batch,
        **{name: getattr(batch, name)[:, 1:] for name in ("tokens_BS", "labels_BS", "weights_BS")},
    )
    messages = []
    for call in (engine.train_step, engine.model.score):
        with pytest.raises(ValueError) as raised:
            call(odd, *((cross_entropy, 0.0) if call == engine.train_step else (log_probs,)))
        messages.append(str(raised.value))
    return messages


@pytest.mark.parametrize(
    ("settings", "unit", "named"),
    [
        (("parallel.tensor=2", "parallel.pipeline=2"), 2, "parallel.tensor = 2"),
        (("parallel.context=2",), 4, "parallel.context = 2"),
    ],
)
def test_rows_that_ranks_cannot_share_are_refused_before_any_pass(settings, unit, named):
    says = f"rows of 15 positions are no multiple of {unit}, which {named}"
    for messages in run_ranks(odd_lengths, 4, settings):
        assert all(says in message for message in messages)


def after_an_exception(preset):
    """Metrics of a step, the text of an exception within others, and metrics of the step again."""
    config = tiny(f"model.preset={preset}", "train.micro_batch=4", "model.router_aux_loss=0.5")
    engine, batch = Engine(config, start(config)), whole_batch()
    steps = [engine.train_step(batch, cross_entropy, 0.0) for _ in range(2)]

    def broken(outputs, batch):
        if outputs["log_z"].any():
            raise OSError("in the middle")
        return {"x": -outputs["log_prob"]}

    def compute(logits, batch):
        raise OSError("in the middle")

    with pytest.raises(OSError):
        engine.train_step(batch, Objective(log_probs, broken, {"x": per_token}), 0.0)
    with pytest.raises(OSError):
        engine.model.score(batch, log_probs._replace(compute=compute))
    return [*steps, *(engine.train_step(batch, cross_entropy, 0.0) for _ in range(2))]


@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_an_exception_in_a_step_or_a_score_leaves_the_next_step_as_it_was(preset):
    ((_, before, *after),) = run_ranks(after_an_exception, 1, preset)
    assert after == [before, before]


def without_a_gradient():
    """Weights before and after a step whose loss has no gradient, though an output has."""
    config = tiny()
    engine, batch = Engine(config, start(config)), whole_batch()
    engine.train_step(batch, cross_entropy, 1e-3)
    before = [p.clone() for p in engine.model.chunks[0].parameters()]

    def values(outputs, batch):
        return {"x": outputs["log_rest"]}  # no autograd: known after the pass alone

    with pytest.raises(RuntimeError) as raised:
        engine.train_step(batch, Objective(top_k(3), values, {"x": per_token}), 1e-3)
    return str(raised.value), all(map(torch.equal, before, engine.model.chunks[0].parameters()))


def test_a_loss_without_a_gradient_never_trains_the_step_before_again():
    ((message, same),) = run_ranks(without_a_gradient, 1)
    assert "has got no gradient in this step" in message and same


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


def test_names_of_means_are_their_own():
    for wrong, told in (
        (({}, {"x": per_token}), "without losses"),
        (({"x": per_token}, {"x": per_sequence}), "x: among the losses and the metrics"),
        (({"loss": per_token}, {}), "a mean is named loss"),
        (({"x": per_token}, {"grad_norm": per_token}), "a mean is named grad_norm"),
    ):
        with pytest.raises(ValueError, match=told):
            Objective(log_probs, values, *wrong)


def test_names_that_a_step_reports_are_reserved():
    config = replace(tiny(), log=replace(tiny().log, peak_tflops=1.0))
    reported = {*speed(config, 1, 1.0), *balance_metrics(torch.ones(1, 2, 4), 4, torch.ones(1, 4))}
    assert reported <= RESERVED
    means = dict.fromkeys(sorted(RESERVED), per_token)
    with pytest.raises(ValueError, match="tokens_per_second"):
        Objective(log_probs, values, means)


@pytest.mark.parametrize("count", [0, -1.0, float("nan")])
def test_a_mean_divides_by_no_count_that_is_none(count):
    with pytest.raises(ValueError, match="a mean divides by count = .*; valid: above 0"):
        Mean(kept, count=count)
