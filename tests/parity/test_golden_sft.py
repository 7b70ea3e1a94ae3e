"""The losses of mode sft are TRL's, on golden files: values and gradients in float64.

The logits are those of an output layer whose hidden states they are, by the unit matrix: so values
and gradients come through the head of the last stage, its tiles and their own backward pass.
"""

from dataclasses import replace

import golden
import pytest
import torch

from megatron_qwen3.config import load
from megatron_qwen3.model.logits import Logits
from megatron_qwen3.model.tiles import TILE_BYTES
from megatron_qwen3.posttrain.sft import objective
from megatron_qwen3.training.batch import TokenBatch

IGNORED = -100
OBJECTIVES = {"nll": "cross_entropy", "dft": "dft"}
TILES = [TILE_BYTES, 64]  # all logits at once, and 16 of them


class Alone:
    """A group of one rank."""

    def rank(self):
        return 0

    def size(self):
        return 1


@pytest.mark.parametrize("tile_bytes", TILES)
@pytest.mark.parametrize("case", golden.cases("rl_losses.json", "sft"))
def test_loss_and_gradient_are_trls(case, tile_bytes):
    kind = case["hyper"]["loss_type"]
    if kind not in OBJECTIVES:
        pytest.skip(f"no objective is loss_type {kind!r}")
    logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(case["inputs"]["labels"])[:, 1:]  # of position t is token t + 1
    is_trained = labels != IGNORED
    labels = labels.masked_fill(~is_trained, 0)
    batch = TokenBatch(torch.zeros_like(labels), labels, is_trained.float())
    asked = objective(
        load(
            [],
            [
                "model.preset=tiny-dense",
                "train.steps=1",
                "run.mode=sft",
                f"sft.objective={OBJECTIVES[kind]}",
            ],
        )
    )
    identity = torch.eye(logits.shape[-1], dtype=torch.float64)
    last_stage = Logits(logits[:, :-1].transpose(0, 1), identity, Alone(), tile_bytes)
    values = asked.values(asked.head.compute(last_stage, batch), batch)
    loss = 0.0
    for name, mean in asked.losses.items():
        mean = replace(mean, count=case["hyper"].get("num_items_in_batch"))
        weights = mean.weights(batch).double()
        loss = loss + (values[name] * weights).sum() / (mean.count or weights.sum())
    (gradient,) = torch.autograd.grad(loss, logits)
    wanted = torch.tensor(case["outputs"]["grad_logits"], dtype=torch.float64)
    assert loss.item() == pytest.approx(case["outputs"]["loss"], abs=case["tol"])
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=case["tol"])
    trained = (values["trained_tokens"] * asked.metrics["trained_tokens"].weights(batch)).sum()
    assert trained.item() == is_trained.sum().item()
