"""The losses of mode sft are TRL's, on golden files: values and gradients in float64."""

from dataclasses import replace

import golden
import pytest
import torch

from megatron_qwen3.config import load
from megatron_qwen3.posttrain.sft import objective
from megatron_qwen3.training.batch import TokenBatch

IGNORED = -100
OBJECTIVES = {"nll": "cross_entropy", "dft": "dft"}


@pytest.mark.parametrize("case", golden.cases("rl_losses.json", "sft"))
def test_loss_and_gradient_are_trls(case):
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
    all_log_probs = logits[:, :-1].log_softmax(-1)
    outputs = {"log_prob": all_log_probs.gather(-1, labels[..., None])[..., 0]}
    outputs["log_z"] = logits[:, :-1].logsumexp(-1)
    values = asked.values(outputs, batch)
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
