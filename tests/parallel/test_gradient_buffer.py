"""A step's gradients are its own: none of the step before is left in the buffers."""

import pytest
import torch
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy


def gradients(settings, seeds):
    """Gradients by name after one step without an update on each seed's tokens."""
    config = load([], [*settings, "train.steps=9", "train.global_batch=4", "optim.clip_grad=0"])
    engine = Engine(config, start(config))
    for seed in seeds:
        tokens = torch.randint(512, (4, 17), generator=torch.Generator().manual_seed(seed))
        batch = TokenBatch.of(tokens[:, :-1], tokens[:, 1:])
        engine.train_step(batch, cross_entropy, rate=0.0)
    return {name: p.main_grad.clone() for name, p in engine.model.chunks[0].named_parameters()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_gradients_of_a_second_step_do_not_know_the_first(preset, precision):
    settings = [
        f"model.preset={preset}",
        f"train.precision={precision}",
        "model.router_aux_loss=0",  # which does know the step before
        "data.sequence_length=16",
    ]
    (second,), (alone,) = (run_ranks(gradients, 1, settings, seeds) for seeds in ([1, 2], [2]))
    for name, gradient in alone.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(second[name], gradient, rtol=0, atol=0, msg=name)
