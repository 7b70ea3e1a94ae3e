"""Learning rates and losses by their formulas."""

from itertools import pairwise

import pytest
import torch

from megatron_qwen3.config import load
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.objectives import with_z_loss
from megatron_qwen3.training.optim import learning_rate


def config(*settings):
    rates = ["optim.lr=1.0", "optim.min_lr=0.1"]
    return load([], ["model.preset=tiny-dense", "train.steps=100", *rates, *settings])


@pytest.mark.parametrize("schedule", ["cosine", "constant", "wsd"])
def test_the_rate_rises_to_its_peak_in_equal_steps(schedule):
    c = config(f"optim.schedule={schedule}", "optim.warmup_steps=4")
    assert [learning_rate(c, s) for s in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_the_cosine_falls_from_the_peak_to_the_least_rate_at_the_last_step():
    c = config("optim.schedule=cosine", "optim.warmup_steps=10")
    rates = [learning_rate(c, s) for s in range(10, 100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[44] == pytest.approx(0.55)  # half of the way
    assert rates[-1] == pytest.approx(0.1)


def test_wsd_is_constant_and_falls_linearly_at_the_end():
    c = config("optim.schedule=wsd", "optim.decay_steps=9")
    rates = [learning_rate(c, s) for s in range(100)]
    assert rates[:91] == [1.0] * 91
    assert rates[91:] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    default = config("optim.schedule=wsd")
    assert [learning_rate(default, s) < 1 for s in (89, 90, 99)] == [False, True, True]


@pytest.mark.parametrize("warmup", [0, 88, 90, 95, 100])
def test_wsds_own_decay_begins_no_earlier_than_the_rise_has_ended(warmup):
    c = config("optim.schedule=wsd", f"optim.warmup_steps={warmup}", "optim.decay_steps=0")
    rates = [learning_rate(c, s) for s in range(100)]
    assert rates[:warmup] == pytest.approx([(s + 1) / warmup for s in range(warmup)])
    falls = [round(a - b, 9) for a, b in pairwise(rates[max(0, warmup - 1) :])]
    assert falls == sorted(falls) and all(fall >= 0 for fall in falls)
    if warmup < 100:
        assert rates[-1] == pytest.approx(0.1)
        steps = min(10, 100 - warmup)
        assert falls[-steps:] == pytest.approx([0.9 / steps] * steps)


def test_a_constant_rate_stays():
    c = config("optim.schedule=constant")
    assert {learning_rate(c, s) for s in range(100)} == {1.0}


def test_the_z_loss_pulls_the_log_of_the_denominator_to_zero():
    log_z = torch.tensor([[3.0, -2.0]], requires_grad=True)
    outputs = {"log_prob": torch.tensor([[-1.0, -4.0]]), "log_z": log_z}
    ids = torch.zeros(1, 2, dtype=torch.long)
    values = with_z_loss(0.5).values(outputs, TokenBatch.of(ids, ids))
    assert values["cross_entropy"].tolist() == [[1, 4]] and values["z_loss"].tolist() == [[4.5, 2]]
    sum(values.values()).sum().backward()
    assert log_z.grad.tolist() == [[3.0, -2.0]]
