"""Logits and gradients equal transformers' Qwen3 and Qwen3-MoE, for the same random weights.

Ours run on a rank of their own; transformers runs here, with the weights that the rank sends.
"""

import functools

import pytest
import torch
from ranks import run_ranks
from theirs import as_theirs, randomize, theirs

from megatron_qwen3.config import load
from megatron_qwen3.model.build import build
from megatron_qwen3.model.flops import parameter_count
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch

pytest.importorskip("transformers")

BATCH, LENGTHS = 2, (3, 17, 64)
YARN = ("rope.yarn_factor=4", "rope.yarn_original_length=16")  # below, past and at its end
MODELS = {
    "dense": ("model.preset=tiny-dense",),
    "dense-untied": ("model.preset=tiny-dense", "model.tie_embeddings=false"),
    "dense-theta-10000": ("model.preset=tiny-dense", "model.rope_theta=1e4"),
    "dense-yarn": ("model.preset=tiny-dense", *YARN),
    "moe": ("model.preset=tiny-moe",),
    "moe-tied": ("model.preset=tiny-moe", "model.tie_embeddings=true"),
    "moe-theta-10000": ("model.preset=tiny-moe", "model.rope_theta=1e4"),
    "moe-yarn": ("model.preset=tiny-moe", *YARN),
}


def tiny(*settings):
    base = ["train.steps=1", "train.precision=fp32", "model.router_aux_loss=0.0"]
    return load([], [*base, *settings])


def token_ids(length):
    random = torch.Generator().manual_seed(length)
    return torch.randint(0, 512, (BATCH, length + 1), generator=random)


def ours(*settings):
    """Weights, and for each length the logits and the gradients of the mean cross-entropy."""
    config = tiny(*settings)
    (model,) = build(config, start(config))
    randomize(model)
    results = {}
    for length in LENGTHS:
        ids = token_ids(length)
        with torch.no_grad():
            logits_BSV = model(ids[:, :-1]).whole().transpose(0, 1)
        model.zero_grad()
        batch = TokenBatch.of(ids[:, :-1], ids[:, 1:])
        outputs = log_probs.compute(model(batch.tokens_BS), batch)
        (-outputs["log_prob"].mean()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results[length] = logits_BSV, gradients
    return {name: p.data for name, p in model.named_parameters()}, results


@functools.cache
def ours_and_theirs(name):
    config = tiny(*MODELS[name])
    weights, results = run_ranks(ours, 1, *MODELS[name])[0]
    network = theirs(config.model, as_theirs(weights, config.model), config.rope)
    return config.model, results, network


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_transformers(name, length):
    _, results, network = ours_and_theirs(name)
    expected = network(token_ids(length)[:, :-1]).logits
    logits_BSV, _ = results[length]
    assert logits_BSV.shape == (BATCH, length, 512)
    assert expected.std() > 0.3
    torch.testing.assert_close(logits_BSV, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_transformers(name, length):
    model, results, network = ours_and_theirs(name)
    ids = token_ids(length)
    network.zero_grad()
    logits_BSV = network(ids[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits_BSV.flatten(0, 1), ids[:, 1:].flatten()).backward()
    gradients = as_theirs(results[length][1], model)
    expected = {name: p.grad for name, p in network.named_parameters()}
    assert gradients.keys() == expected.keys()
    for parameter, gradient in expected.items():
        apart = (gradients[parameter] - gradient).norm()
        assert apart <= 1e-5 * gradient.norm(), (parameter, apart, gradient.norm())


def fresh_statistics(*settings):
    """{name: (elements, mean, standard deviation)} of a fresh model."""
    config = tiny(*settings)
    (model,) = build(config, start(config))
    return {
        name: (p.numel(), p.mean().item(), p.std().item()) for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("name", ["dense", "dense-untied", "moe", "moe-tied"])
def test_fresh_weights_have_the_right_number_and_spread(name):
    config = tiny(*MODELS[name])
    statistics = run_ranks(fresh_statistics, 1, *MODELS[name])[0]
    assert sum(count for count, _, _ in statistics.values()) == parameter_count(config.model)
    for parameter, (count, mean, std) in statistics.items():
        if "norm" in parameter:
            assert (mean, std) == (1.0, 0.0), parameter
        else:
            assert abs(mean) < 5 * 0.02 / count**0.5, parameter
            assert std == pytest.approx(0.02, rel=5 / count**0.5), parameter
