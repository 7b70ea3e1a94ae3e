"""No weight is read before all data ranks have it, where they share its update.

megatron-core's DDP waits for a weight in a hook before the forward pass of the module that owns it:
so each such module must be called, also where a fused path takes its weight from it.
"""

import pytest
import torch
from layouts import tiny
from ranks import run_ranks

from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model


def not_called(*settings):
    """Modules with weights of their own that a pass does not call."""
    config = tiny(*settings)
    model = Model(config, start(config))
    waiting = set()
    for chunk in model.chunks:
        for name, module in chunk.named_modules():
            if any(True for _ in module.parameters(recurse=False)):
                waiting.add(name)
                module.register_forward_pre_hook(lambda *_, name=name: waiting.discard(name))
    ids = torch.zeros(2, 8, dtype=torch.int64)
    model.score(TokenBatch.of(ids, ids), log_probs)
    return waiting


@pytest.mark.parametrize("tied", ["true", "false"])
@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_every_module_with_weights_is_called(preset, tied):
    settings = (f"model.preset={preset}", f"model.tie_embeddings={tied}", "train.global_batch=2")
    assert run_ranks(not_called, 1, *settings) == [set()]
