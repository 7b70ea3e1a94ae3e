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


def kept_bytes(runs):
    """Bytes that one forward pass keeps, without the weights and the loss, of each of `runs`."""
    from megatron_qwen3.model.build import build
    from megatron_qwen3.parallel import runtime

    layout = runtime.start(config_of(*runs[0]))
    return [_kept_bytes(config, *build(config, layout)) for config in (config_of(*r) for r in runs)]


def _kept_bytes(config, model):
    import torch

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive: none else has its place
        return tensor

    tokens = torch.randint(0, 1024, (config.train.micro_batch, 256))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden, rotary = model.embedding(tokens, None), model.rotary_pos_emb(256)
        model.decoder(hidden, attention_mask=None, rotary_pos_emb=rotary)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_activations_are_those_that_autograd_keeps(preset):
    base = [f"model.preset={preset}", "train.micro_batch=2"]
    runs = [
        [*base, f"train.precision={precision}", f"parallel.recompute={recompute}"]
        for precision in ("bf16", "fp32")
        for recompute in ("none", "selective", "full")
    ]
    (found,) = run_ranks(kept_bytes, 1, runs)
    for run, size in zip(runs, found, strict=True):
        assert size == pytest.approx(expected_bytes(run), rel=0.06), run


def expected_bytes(overrides):
    """What the planner counts, with the last norm's input and the rotary tables of all layers."""
    job = Job.of(config_of(*overrides), 1)
    layers = sum(activations.layer_bytes(job, layer) for layer in range(job.model.num_layers))
    last_norm = job.micro_batch_tokens * job.model.hidden_size * job.weight_bytes
    return layers + last_norm + 2 * 4 * job.sequence_length * job.model.head_dim
