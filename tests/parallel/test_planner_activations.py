"""The planner's count of activations against the tensors that autograd keeps of our layers, and
the memory of the exchange of context ranks and of the loss."""

import pytest
from live_memory import LiveMemory
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.cpu import products
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
    import torch.distributed as dist

    from megatron_qwen3.model.context import ContextShare
    from megatron_qwen3.training.batch import TokenBatch

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive: none else has its place
        return tensor

    tokens = torch.randint(0, 1024, (config.train.micro_batch, 256))
    share, sequences = None, None
    if config.parallel.context > 1:
        share = ContextShare(dist.group.WORLD)
        sequences = TokenBatch.of(tokens, tokens).sequences(share)
        tokens = share.of(tokens)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(tokens, sequences)
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


def expected_bytes(overrides, ranks=1):
    """The planner's count, with the last norm's input and the rotary tables of all layers."""
    job = Job.of(config_of(*overrides), ranks)
    layers = sum(activations.layer_bytes(job, layer) for layer in range(job.model.num_layers))
    last_norm = job.micro_batch_tokens * job.model.hidden_size * job.weight_bytes
    # Context ranks' positions are given, of each row; what is computed again has them from outside.
    rows = job.micro_batch if ranks > 1 and "layer" not in job.recompute else 1
    return layers + last_norm + 2 * 4 * job.sequence_length // ranks * rows * job.model.head_dim


@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_activations_of_a_context_rank_are_those_of_its_places(preset):
    """No more than half of one rank's: of its keys, too."""
    base = [f"model.preset={preset}", "train.micro_batch=2", "parallel.context=2"]
    runs = [
        [*base, f"train.precision={precision}", f"parallel.recompute={recompute}"]
        for precision in ("bf16", "fp32")
        for recompute in ("none", "full")
    ]
    for found in run_ranks(kept_bytes, 2, runs):
        for run, size in zip(runs, found, strict=True):
            assert size == pytest.approx(expected_bytes(run, ranks=2), rel=0.06), run


def exchanged_bytes(overrides):
    """The most that attention's backward pass takes on this rank, with the gradient it is given."""
    import torch
    import torch.distributed as dist

    from megatron_qwen3.model.context import ContextShare
    from megatron_qwen3.model.reads import Reads

    dist.init_process_group("gloo")
    share, model = ContextShare(dist.group.WORLD), config_of(*overrides).model
    length, rows, size = 256, 2, model.head_dim
    heads = (model.num_attention_heads, model.num_query_groups, model.num_query_groups)
    places = length // dist.get_world_size()
    q, k, v = (torch.randn(places, rows, n, size).bfloat16().requires_grad_() for n in heads)
    reads = Reads.of(rows, length, None, share.pieces(length))
    mixed = share.attention(q, k, v, reads, None)
    grad = torch.ones_like(mixed)
    with LiveMemory() as memory:
        mixed.backward(grad)
    return memory.peak_bytes + grad.numel() * grad.element_size()


@pytest.mark.parametrize("ranks", [2, 4])
def test_keys_of_all_context_ranks_take_what_the_planner_says(ranks):
    overrides = ["model.preset=tiny-dense", "train.micro_batch=2", f"parallel.context={ranks}"]
    expected = activations.exchange_bytes(Job.of(config_of(*overrides), ranks))
    for peak in run_ranks(exchanged_bytes, ranks, overrides):
        assert peak == pytest.approx(expected, rel=0.06)


def test_one_rank_exchanges_nothing():
    assert activations.exchange_bytes(Job.of(config_of("model.preset=tiny-dense"), 1)) == 0


class Alone:
    """A process group of one rank."""

    rank, size = (lambda self: 0), (lambda self: 1)


def test_tiles_are_as_large_as_the_loss_makes_them():
    from megatron_qwen3.model.tiles import TILE_BYTES

    assert activations.TILE_BYTES == TILE_BYTES


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("vocabulary", [1024, 8192, 65536])
def test_logits_take_tiles_and_the_gradients_of_their_factors(precision, vocabulary, monkeypatch):
    """In one tile, in tiles of some positions, and in tiles of some columns, too."""
    import torch

    from megatron_qwen3.model.logits import Logits

    tile = 256 * 2048 * 4
    monkeypatch.setattr(activations, "TILE_BYTES", tile)
    # oneDNN's sums, which a processor may have, are longer than the planner's, which are a GPU's.
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    overrides = ["model.preset=tiny-dense", f"model.vocab_size={vocabulary}"]
    job = Job.of(config_of(*overrides, f"train.precision={precision}"), 1)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    hidden = torch.randn(256, 1, job.model.hidden_size).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, job.model.hidden_size).to(dtype).requires_grad_()
    weight.main_grad = torch.zeros(weight.shape)
    weight.grad_added_to_main_grad = False
    ids = torch.randint(vocabulary, (256, 1))
    with LiveMemory() as memory:
        Logits(hidden, weight, Alone(), tile).scores(ids).log_p.sum().backward()
    assert activations.logits_bytes(job) == pytest.approx(memory.peak_bytes, rel=0.06)
