"""Documents that share rows: logits and gradients are transformers' on each document alone."""

import functools
import itertools

import pytest
import torch
from ranks import run_ranks
from theirs import as_theirs, randomize, theirs

from megatron_qwen3.config import load
from megatron_qwen3.model.build import build
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch

pytest.importorskip("transformers")

VOCABULARY, LENGTH = 512, 48
DOCUMENTS = ((48,), (1, 17, 30), (16, 16, 16), (40, 1, 7))  # lengths, by row
MODELS = {"dense": ("model.preset=tiny-dense",), "moe": ("model.preset=tiny-moe",)}


def tiny(*settings):
    base = ["train.steps=1", "train.precision=fp32", "model.router_aux_loss=0.0"]
    return load([], [*base, *settings])


def rows():
    random = torch.Generator().manual_seed(5)
    return torch.randint(0, VOCABULARY, (len(DOCUMENTS), LENGTH + 1), generator=random)


def stretches():
    return Stretches.of([[0, *itertools.accumulate(lengths[:-1])] for lengths in DOCUMENTS], LENGTH)


def ours(*settings):
    """Weights, the logits, and the gradients of the sum of all cross-entropies."""
    config = tiny(*settings)
    (model,) = build(config, start(config))
    randomize(model)
    ids, packed = rows(), stretches()
    batch = TokenBatch.of(ids[:, :-1], ids[:, 1:], packed)
    with torch.no_grad():
        logits_BSV = model(batch.tokens_BS, batch.sequences()).whole().transpose(0, 1)
    outputs = log_probs.compute(model(batch.tokens_BS, batch.sequences()), batch)
    (-outputs["log_prob"].sum()).backward()
    weights = {name: p.data for name, p in model.named_parameters()}
    return weights, logits_BSV, {name: p.grad for name, p in model.named_parameters()}


@functools.cache
def ours_and_theirs(name):
    config = tiny(*MODELS[name])
    (run,) = run_ranks(ours, 1, *MODELS[name])
    return config.model, run, theirs(config.model, as_theirs(run[0], config.model))


def documents():
    """Row and places of each document, its ids and the ids to predict."""
    ids = rows()
    for row, lengths in enumerate(DOCUMENTS):
        for begin, length in zip(itertools.accumulate((0, *lengths)), lengths, strict=False):
            places = slice(begin, begin + length)
            yield row, places, ids[row, :-1][None, places], ids[row, 1:][None, places]


@pytest.mark.parametrize("name", MODELS)
def test_logits_of_each_packed_document_equal_transformers_on_it_alone(name):
    _, (_, logits_BSV, _), network = ours_and_theirs(name)
    for row, places, ids, _ in documents():
        expected = network(ids).logits[0]
        torch.testing.assert_close(logits_BSV[row, places], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_packed_documents_equal_the_sum_of_transformers_alone(name):
    model, (_, _, gradients), network = ours_and_theirs(name)
    network.zero_grad()
    for _, _, ids, labels in documents():
        logits = network(ids).logits[0]
        torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum").backward()
    found = as_theirs(gradients, model)
    expected = {name: p.grad for name, p in network.named_parameters()}
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        apart = (found[parameter] - gradient).norm()
        assert apart <= 1e-5 * gradient.norm(), (parameter, apart, gradient.norm())
