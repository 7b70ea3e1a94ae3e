"""Tensors that take turns in the device's memory are gone in between, and back to the bit."""

import numpy as np
import pytest
import torch
from torch import nn

from megatron_qwen3.training.turns import DeviceTurn


def trained():
    torch.manual_seed(3)
    model = nn.Linear(40, 30)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return model, optimizer


def step(model, optimizer, seed):
    torch.manual_seed(seed)
    model(torch.randn(7, 40)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def states(optimizer):
    return [x for state in optimizer.state.values() for x in state.values()]


def test_an_optimizer_that_left_and_came_back_takes_the_same_steps():
    plain, turned = trained(), trained()
    turn = DeviceTurn(lambda: states(turned[1]))
    for seed in range(4):
        step(*plain, seed)
        step(*turned, seed)
        turn.leave()
        assert turn.is_away
        assert sum(x.untyped_storage().nbytes() for x in states(turned[1])) == 0
        turn.come()
    for mine, other in zip(turned[0].parameters(), plain[0].parameters(), strict=True):
        assert mine.equal(other)


def test_views_of_one_storage_stay_views_of_it():
    buffer = torch.arange(12.0)
    first, second = buffer[:6].view(2, 3), nn.Parameter(buffer[6:])
    turn = DeviceTurn(lambda: [first, second, buffer])
    turn.leave()
    turn.come()
    assert buffer.equal(torch.arange(12.0)) and first.data_ptr() == buffer.data_ptr()
    with torch.no_grad():
        second[0] = -1
    assert buffer[6] == -1


def test_memory_that_is_not_torchs_own_can_leave_too():
    weight = nn.Parameter(torch.from_numpy(np.arange(6.0)))
    turn = DeviceTurn(lambda: [weight])
    turn.leave()
    assert weight.untyped_storage().nbytes() == 0
    turn.come()
    assert weight.tolist() == [0, 1, 2, 3, 4, 5]


def test_what_is_away_cannot_leave_again():
    turn = DeviceTurn(lambda: [torch.ones(3)])
    turn.leave()
    with pytest.raises(AssertionError, match="left already"):
        turn.leave()
    turn.come()
    assert not turn.is_away
