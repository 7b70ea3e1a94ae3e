"""DALI copies a batch onto a GPU on a stream of its own, unchanged."""

import pytest
import torch
from read_by_steps import Numbered

from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.dali import DaliReader

pytestmark = pytest.mark.gpu


def test_batches_on_a_gpu_are_those_that_were_read_however_late_they_are_looked_at():
    read, gpu, steps = Numbered(rows=64, length=4096), torch.device("cuda", 0), 12
    busy = torch.randn(4096, 4096, device=gpu)
    with DaliReader(read, steps, gpu) as batches:
        found = []
        for step in range(steps):
            for _ in range(20):  # work that is queued before the copies, as a step's is
                busy = (busy @ busy).clamp(-1, 1)
            found.append(batches.batch(step, step + 1))
    for step, batch in enumerate(found):
        expected = TokenBatch.of_arrays(read(step))
        assert batch.tokens_BS.device == batch.stretches.cu_seqlens.device == gpu
        assert torch.equal(batch.tokens_BS.cpu(), expected.tokens_BS)
        assert torch.equal(batch.weights_BS.cpu(), expected.weights_BS)
        assert torch.equal(batch.stretches.cu_seqlens.cpu(), expected.stretches.cu_seqlens)
