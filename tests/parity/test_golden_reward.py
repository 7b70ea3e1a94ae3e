"""The reward model's loss and its gradient are those of TRL's RewardTrainer, in float64."""

import golden
import pytest
import torch

from megatron_qwen3.posttrain.rows.bradley_terry import bradley_terry, off_center


@pytest.mark.parametrize("case", golden.cases("rl_losses.json", "reward_model"))
def test_loss_and_gradient_and_accuracy_are_trls(case):
    given, expected, tol = case["inputs"], case["outputs"], case["tol"]
    chosen, rejected = (
        torch.tensor(given[name], dtype=torch.float64, requires_grad=True)
        for name in ("chosen", "rejected")
    )
    margin = torch.tensor(given["margin"] or 0.0, dtype=torch.float64)
    loss = bradley_terry(chosen, rejected, margin).mean()
    if centering := case["hyper"]["center_rewards_coefficient"]:
        loss = loss + centering * off_center(chosen, rejected).mean()
    gradients = torch.autograd.grad(loss, (chosen, rejected))
    assert loss.item() == pytest.approx(expected["loss"], rel=tol, abs=tol)
    for name, gradient in zip(("chosen", "rejected"), gradients, strict=True):
        wanted = expected[f"grad_{name}"]
        assert gradient.tolist() == pytest.approx(wanted, rel=tol, abs=tol), name
    accuracy = (chosen > rejected).float().mean().item()
    assert accuracy == pytest.approx(expected["accuracy"], abs=1e-6)


def test_rewards_far_apart_have_finite_losses_and_gradients():
    chosen = torch.tensor([-2e4, 2e4, 0.0], requires_grad=True)
    loss = bradley_terry(chosen, -chosen.detach())
    (gradient,) = torch.autograd.grad(loss.sum(), chosen)
    assert loss.tolist() == pytest.approx([4e4, 0.0, 0.6931472])
    assert gradient.tolist() == [-1.0, 0.0, -0.5]
