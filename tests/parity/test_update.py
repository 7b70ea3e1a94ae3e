"""The optimizer's step equals torch's AdamW on transformers' models, and vectors do not decay."""

import pytest
import torch
from ranks import run_ranks
from shards import assemble, local_shards
from theirs import as_theirs, as_trained, randomize, theirs

from megatron_qwen3.config import load
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import Objective, cross_entropy, per_token
from megatron_qwen3.training.optim import described

pytest.importorskip("transformers")

RATES, SEQUENCES, POSITIONS = (3e-3, 2e-3, 1e-3), 4, 24
CLIP, DECAY, EPS = 0.5, 0.2, 1e-5  # the norms are larger: every step is clipped


def tiny(*settings):
    base = ["train.steps=3", "train.precision=fp32", f"train.global_batch={SEQUENCES}"]
    base += ["model.router_aux_loss=0.0", f"data.sequence_length={POSITIONS}"]
    optim = [f"optim.eps={EPS}", f"optim.clip_grad={CLIP}", f"optim.weight_decay={DECAY}"]
    return load([], [*base, *optim, *settings])


def batches():
    random = torch.Generator().manual_seed(13)
    shape = (len(RATES), SEQUENCES, POSITIONS + 1)
    return torch.randint(0, 512, shape, generator=random)


def trained(*settings):
    """Weights before and after three steps, their gradient norms, and whose optimizer it was."""
    config = tiny(*settings)
    engine = Engine(config, start(config))
    for model in engine.model.chunks:
        randomize(model)
    engine.optimizer.reload_model_params()
    before = local_shards(engine.model.chunks, lambda p: p)
    norms = []
    for ids, rate in zip(batches(), RATES, strict=True):
        mine = ids.chunk(engine.layout.data)[engine.data_rank]
        batch = TokenBatch.of(mine[:, :-1], mine[:, 1:].contiguous())
        norms.append(engine.train_step(batch, cross_entropy, rate)["grad_norm"])
    engine.model.synchronize()
    return (
        before,
        local_shards(engine.model.chunks, lambda p: p),
        norms,
        described(engine.optimizer),
    )


def reference(network):
    """Three steps of torch's AdamW, in which matrices alone decay; the gradient norms."""
    of_size = {True: [], False: []}
    for parameter in network.parameters():
        of_size[parameter.ndim > 1].append(parameter)
    groups = [
        {"params": of_size[True], "weight_decay": DECAY},
        {"params": of_size[False], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=EPS)
    norms = []
    for ids, rate in zip(batches(), RATES, strict=True):
        logits_BSV = network(ids[:, :-1]).logits
        adam.zero_grad()
        torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), ids[:, 1:].flatten()).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP).item())
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
    return norms


LAYOUTS = {
    "one-rank": (1, ()),
    "one-rank-unsharded": (1, ("optim.distributed=false",)),
    "dp2": (2, ()),
    "tp2": (2, ("parallel.tensor=2",)),
    "tp2-dp2": (4, ("parallel.tensor=2",)),
}


QUICK = {("tiny-dense", "one-rank-unsharded"), ("tiny-dense", "tp2-dp2"), ("tiny-moe", "tp2")}
CASES = [
    pytest.param(preset, layout, marks=[] if (preset, layout) in QUICK else [pytest.mark.slow])
    for preset in ("tiny-dense", "tiny-moe")
    for layout in LAYOUTS
]


@pytest.mark.parametrize(("preset", "layout"), CASES)
def test_three_clipped_steps_equal_those_of_torch_on_transformers_model(preset, layout):
    ranks, settings = LAYOUTS[layout]
    results = run_ranks(trained, ranks, f"model.preset={preset}", *settings)
    model = tiny(f"model.preset={preset}").model
    before, after = (
        as_theirs(as_trained(assemble([result[n] for result in results])), model) for n in (0, 1)
    )
    network = theirs(model, before)
    norms = reference(network)
    assert min(norms) > 2 * CLIP
    assert results[0][2] == pytest.approx(norms, rel=1e-5)
    assert results[0][3] == "torch.optim.adamw.AdamW, fused"
    for name, expected in network.named_parameters():
        update = expected.detach() - before[name]
        apart = (after[name] - expected).norm()
        assert apart <= 1e-3 * update.norm(), (name, apart, update.norm())


no_loss = Objective(
    log_probs, lambda outputs, _: {"zero": 0 * outputs["log_prob"]}, {"zero": per_token}
)


def after_a_gradient_of_zero(*settings):
    """(name, weight before, weight after) of every parameter."""
    exact = ("optim.weight_decay=0.125", *settings)
    config = tiny("model.preset=tiny-moe", *exact)
    engine = Engine(config, start(config))
    (model,) = engine.model.chunks
    randomize(model)
    engine.optimizer.reload_model_params()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = batches()[0]
    metrics = engine.train_step(TokenBatch.of(ids[:, :-1], ids[:, 1:]), no_loss, 0.125)
    assert metrics["grad_norm"] == 0.0
    engine.model.synchronize()
    return [(name, before[name], p.detach()) for name, p in model.named_parameters()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_a_gradient_matrices_shrink_and_norms_stay_to_the_bit(precision):
    (weights,) = run_ranks(after_a_gradient_of_zero, 1, f"train.precision={precision}")
    assert sum("norm" in name for name, _, _ in weights) > 4
    for name, before, after in weights:
        # Rate and decay are powers of two: one rounding, as in one product.
        kept = 1.0 if "norm" in name else 1 - 0.125 * 0.125
        assert torch.equal(after, (before.float() * kept).to(before.dtype)), name
