"""Forward and backward passes on a GPU are timed without a wait for later work."""

import pytest
import torch

from megatron_qwen3.cpu import redirect
from megatron_qwen3.cpu.clock import ComputeClock


class Event:
    """A moment of a GPU, one second after the last one that was recorded."""

    now, waited_for = 0, []

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.now += 1
        self.at = Event.now

    def synchronize(self):
        Event.waited_for.append(self.at)

    def elapsed_time(self, later):
        return 1000.0 * (later.at - self.at)  # milliseconds


def test_passes_add_up_and_the_last_of_them_alone_is_waited_for(monkeypatch):
    monkeypatch.setattr(redirect, "REDIRECTED", False)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: pytest.fail("waits for the whole GPU"))
    clock = ComputeClock()
    assert clock.seconds() == 0
    for name in ("forward-compute", "forward-recv", "backward-compute"):
        clock(name).start()
        clock(name).stop()
    assert clock.seconds() == 2.0 and Event.waited_for == [4]
    clock.restart()
    assert clock.seconds() == 0
