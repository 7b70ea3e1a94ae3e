"""Reading ahead changes when a batch is read, and nothing else."""

import threading

import pytest
import torch

from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.reader import BatchReader

CPU = torch.device("cpu")


class Source:
    """Batches that hold their step's number; steps in `bad` cannot be read. `read`: those asked."""

    def __init__(self, bad=()):
        self.bad, self.read = bad, []
        self.is_read = [threading.Event() for _ in range(9)]

    def __call__(self, step):
        self.read.append(step)
        self.is_read[step].set()
        if step in self.bad:
            raise ValueError(f"step {step} is damaged")
        tokens_BS = torch.full((1, 2), step)
        return TokenBatch.of(tokens_BS, tokens_BS)


def step_of(batch):
    return batch.tokens_BS[0, 0].item()


def test_every_step_gets_its_own_batch_and_is_read_once():
    source = Source()
    with BatchReader(source, 5, CPU) as reader:
        assert [step_of(reader.batch(step, step + 1)) for step in range(5)] == [0, 1, 2, 3, 4]
    assert source.read == [0, 1, 2, 3, 4]


def test_the_next_batch_is_read_while_nobody_asks_for_it():
    source = Source()
    with BatchReader(source, 5, CPU) as reader:
        reader.batch(0, 1)
        assert source.is_read[1].wait(60) and source.read == [0, 1]


@pytest.mark.parametrize("asked", [[0, 3, 4], [0, 1, 1, 2], [2, 1, 0]])
def test_a_step_that_was_not_expected_is_read_when_it_is_asked_for(asked):
    with BatchReader(Source(), 9, CPU) as reader:
        assert [step_of(reader.batch(step, step + 1)) for step in asked] == asked


def test_what_cannot_be_read_is_told_at_its_step_and_not_before():
    with BatchReader(Source(bad=(2,)), 5, CPU) as reader:
        assert step_of(reader.batch(0, 1)) == 0
        assert step_of(reader.batch(1, 2)) == 1
        with pytest.raises(ValueError, match="step 2 is damaged"):
            reader.batch(2, 3)
        assert step_of(reader.batch(3, 4)) == 3


def test_a_damaged_batch_that_is_left_out_is_never_told():
    with BatchReader(Source(bad=(1,)), 5, CPU) as reader:
        reader.batch(0, 1)
        assert step_of(reader.batch(2, 3)) == 2


def test_nothing_is_read_after_the_last_step_and_no_thread_stays():
    source, before = Source(), threading.active_count()
    with BatchReader(source, 2, CPU) as reader:
        reader.batch(0, 1)
        reader.batch(1, 2)
    assert source.read == [0, 1] and threading.active_count() == before


def test_the_thread_of_a_gpu_pins_on_its_own_gpu(monkeypatch):
    gpu, calls = torch.device("cuda", 3), []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(device))
    monkeypatch.setattr(TokenBatch, "pinned", lambda batch: calls.append("pinned") or batch)
    with BatchReader(Source(), 1, gpu) as reader:
        assert step_of(reader.batch(0, 1)) == 0
    assert calls == [gpu, "pinned"]
