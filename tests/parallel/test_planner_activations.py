"""The planner's count of kept activations against what autograd keeps of our own layers."""

import pytest
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.planner import activations
from megatron_qwen3.planner.job import Job


def config_of(*overrides):
    sizes = ["model.hidden_size=128", "model.ffn_hidden_size=320", "model.vocab_size=1024"]
    batch = ["train.steps=1", "train.global_batch=8", "data.sequence_length=256"]
    return load([], [*sizes, *batch, *overrides])


def kept_bytes(overrides):
    """Bytes of every storage but the weights' that one forward pass keeps, without the loss."""
    import torch

    from megatron_qwen3.model.build import build
    from megatron_qwen3.parallel import runtime

    config = config_of(*overrides)
    (model,) = build(config, runtime.start(config))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (
                storage.nbytes(),
                tensor,
            )  # alive, so that no other reuses it
        return tensor

    tokens = torch.randint(0, 1024, (config.train.micro_batch, 256))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.decoder(
            model.embedding(tokens, None),
            attention_mask=None,
            rotary_pos_emb=model.rotary_pos_emb(256),
        )
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_activations_are_those_that_autograd_keeps(preset, recompute, precision):
    overrides = [f"model.preset={preset}", f"train.precision={precision}", "train.micro_batch=2"]
    overrides.append(f"parallel.recompute={recompute}")
    job = Job.of(config_of(*overrides), 1)
    layers = sum(activations.layer_bytes(job, layer) for layer in range(job.model.num_layers))
    last_norm = job.micro_batch_tokens * job.model.hidden_size * job.weight_bytes
    rotary = 2 * 4 * job.sequence_length * job.model.head_dim  # float32 tables, once for all layers
    (found,) = run_ranks(kept_bytes, 1, overrides)
    assert found == pytest.approx(layers + last_norm + rotary, rel=0.06)
