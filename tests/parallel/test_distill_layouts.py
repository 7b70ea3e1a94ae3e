"""Soft targets: a student's gradient is that of the definition on whole logits, in any layout."""

import pytest
import torch
from layouts import assert_same, local_shards
from ranks import run_ranks
from torch import nn

from megatron_qwen3.config import load
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.teachers.distill import METRICS, distilled, with_targets
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model

ROWS, POSITIONS, VOCABULARY, K = 8, 16, 512, 5
KINDS = {
    "soft-targets": (1.0, 1.0),
    "both": (1.0, 0.3),
    "both-tempered": (2.0, 0.3),
}  # temperature, share


def tiny(*settings):
    base = ["train.precision=fp32", f"train.global_batch={ROWS}", "train.steps=1"]
    base += ["model.preset=tiny-dense", "optim.distributed=false", "optim.clip_grad=1e9"]
    return load([], [*base, f"data.sequence_length={POSITIONS}", *settings])


def teacher_log_p(seed, temperature):
    """A teacher of random logits, sure of some positions: log p of all V tokens."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS, POSITIONS, VOCABULARY, generator=random, dtype=torch.float64)
    logits[1] *= 12
    return (2 * logits / temperature).log_softmax(-1)


def whole_batch(seed, temperature):
    random = torch.Generator().manual_seed(11)
    ids = torch.randint(0, VOCABULARY, (ROWS, POSITIONS + 1), generator=random)
    weights = torch.rand(ROWS, POSITIONS, generator=random)
    weights[2] = 0  # a row that nothing is trained of
    weights[5, 3:] = 0
    log_p = teacher_log_p(seed, temperature)
    best = log_p.topk(K)
    rest = log_p.scatter(-1, best.indices, -torch.inf).logsumexp(-1)
    batch = TokenBatch(ids[:, :-1], ids[:, 1:], weights)
    return with_targets(batch, best.indices, best.values.float(), rest.float())


def stepped(kind, seed, *settings):
    """Metrics and gradients of one step of the engine."""
    config = tiny(*settings)
    temperature, share = KINDS[kind]
    engine = Engine(config, start(config))
    rows = ROWS // engine.layout.data
    mine = list(whole_batch(seed, temperature).split(rows))[engine.data_rank]
    metrics = engine.train_step(mine, distilled(K, temperature, share), 0.0)
    return metrics, local_shards(engine.model.chunks, lambda p: getattr(p, "main_grad", None))


def by_autograd(kind, seed=1):
    """The same from the definition: K + 1 probabilities on both sides, out of whole softmaxes."""
    config, (temperature, share) = tiny(), KINDS[kind]
    (model,), batch = Model(config, start(config)).chunks, whole_batch(seed, temperature)
    logits = model(batch.tokens_BS).whole().transpose(0, 1)
    p, ids = teacher_log_p(seed, temperature).exp().float(), batch.extra["ids"]
    q = (logits / temperature).softmax(-1)
    is_kept = torch.zeros_like(p, dtype=torch.bool).scatter(-1, ids, True)

    def bins(x):
        others = torch.where(is_kept, 0.0, x).sum(-1, keepdim=True)
        return torch.cat([x.gather(-1, ids), others], -1)

    p_bins, q_bins = bins(p), bins(q)
    weights = batch.weights_BS

    def mean(x):
        return (x * weights).sum() / weights.sum()

    kl = mean(torch.xlogy(p_bins, p_bins / q_bins).sum(-1))
    nats = nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels_BS, reduction="none")
    cross_entropy = mean(nats)
    loss = share * kl + (1 - share) * cross_entropy
    metrics = {"loss": loss, "soft_targets": loss, "kl": kl, "cross_entropy": cross_entropy}
    metrics["teacher_mass"] = mean(p_bins[..., :K].sum(-1))
    metrics["student_mass"] = mean(q_bins[..., :K].sum(-1))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    named = dict(zip((id(x) for x in model.parameters()), gradients, strict=True))
    shards = local_shards([model], lambda x: named.get(id(x)))
    return {name: x.item() for name, x in metrics.items()}, shards


LAYOUTS = {
    "one-rank": (1, ()),
    "tp2": (2, ("parallel.tensor=2", "train.micro_batch=2")),
    "pp2": (2, ("parallel.pipeline=2",)),
    "dp2": (2, ("train.micro_batch=4",)),
    "cp2": (2, ("parallel.context=2",)),
    "cp2-tp2": (4, ("parallel.context=2", "parallel.tensor=2", "train.micro_batch=4")),
}


@pytest.fixture(scope="module")
def expected():
    return {kind: run_ranks(by_autograd, 1, kind)[0] for kind in KINDS}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_definition_in_any_layout(kind, layout, expected):
    ranks, settings = LAYOUTS[layout]
    results = run_ranks(stepped, ranks, kind, 1, *settings)
    metrics, gradients = expected[kind]
    assert set(METRICS) < set(metrics)
    for told, _ in results:
        assert {name: told[name] for name in metrics} == pytest.approx(metrics, rel=1e-5)
    assert_same([shards for _, shards in results], gradients, "gradients")


def test_another_teacher_has_another_gradient(expected):
    ((metrics, shards),) = run_ranks(stepped, 1, "soft-targets", 2)
    assert metrics["kl"] != pytest.approx(expected["soft-targets"][0]["kl"], rel=1e-3)
    with pytest.raises(AssertionError, match="is off by"):
        assert_same([shards], expected["soft-targets"][1], "gradients")
    ((_, its_own),) = run_ranks(by_autograd, 1, "soft-targets", 2)
    assert_same([shards], its_own, "gradients")


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="share = .*; valid: above 0, at most 1"):
        distilled(K, share=share)
