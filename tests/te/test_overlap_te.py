"""Tokens that travel beside another micro-batch's computation: the same steps as one by one.

Streams are stood in, and run in the order of calls: these tests prove that layers which are taken
apart compute the same as whole ones, not that anything overlaps.
"""

import functools
import os
from dataclasses import replace

import pytest
import torch

from megatron_qwen3.config import load
from megatron_qwen3.toml import emit
from tests.te.te_ranks import run_te_ranks

SPARSE = ("model.preset=tiny-moe", "model.kind=te", "model.router_aux_loss=0.1")
LAYOUTS = {
    "ep2": (2, ("parallel.expert=2",)),
    "tp2-ep2": (2, ("parallel.tensor=2", "parallel.expert=2")),
    "pp2-ep2": (4, ("parallel.pipeline=2", "parallel.expert=2")),
    "pp2-vpp2-ep2": (
        4,
        ("parallel.pipeline=2", "parallel.virtual_pipeline=2", "parallel.expert=2"),
    ),
    "cp2-ep2": (2, ("parallel.context=2", "parallel.expert=2")),
    "gathered-cp2-ep2": (
        2,
        ("parallel.context=2", "parallel.context_exchange=all_gather", "parallel.expert=2"),
    ),
}
OVERLAP = ("overlap.experts=true",)
SLOW = pytest.mark.slow
DELAYED = (*OVERLAP, "overlap.delay_weight_gradients=true")


def trained(config):
    """Three steps, of whole rows, of documents, and of rows with padding: losses, gradient norms,
    the router's metrics, weights; then scores."""
    from megatron_qwen3.model.outputs import log_probs
    from megatron_qwen3.model.stretches import Stretches
    from megatron_qwen3.parallel.runtime import start
    from megatron_qwen3.training.batch import TokenBatch
    from megatron_qwen3.training.engine import Engine
    from megatron_qwen3.training.objectives import cross_entropy
    from megatron_qwen3.training.optim import described

    layout = start(config)
    engine = Engine(config, layout)
    reports = []
    for step in range(3):
        random = torch.Generator().manual_seed(step)
        ids = torch.randint(0, 512, (8, 33), generator=random).chunk(layout.data)[engine.data_rank]
        cut = Stretches.of([[0, 5 + row] for row in range(len(ids))], 32) if step == 1 else None
        batch = TokenBatch.of(ids[:, :-1], ids[:, 1:].contiguous(), cut)
        if step == 2:
            valid = torch.arange(32).expand(len(ids), -1) < 20
            batch = replace(batch, valid_BS=valid, weights_BS=batch.weights_BS * valid)
        reports.append(engine.train_step(batch, cross_entropy, 1e-3))
    engine.model.synchronize()
    weights = [p.detach().float().clone() for c in engine.model.chunks for p in c.parameters()]
    scores = engine.model.score(batch, log_probs)["log_prob"]
    return reports, weights, scores, described(engine.optimizer)


def asked(layout, *more):
    base = ["train.steps=3", "train.global_batch=8", "data.sequence_length=32"]
    # Two rows at a time: with one, the output of attention has another stride on its axis of one
    # where it waits on the host, of the same values, and on some processors torch multiplies that
    # by another kernel, which rounds otherwise.
    base += ["train.micro_batch=2"]
    return load([], [*SPARSE, *base, *LAYOUTS[layout][1], *more])


def run(layout, *more):
    """The results of each rank."""
    fused = "gathered" in layout
    return run_te_ranks(trained, LAYOUTS[layout][0], asked(layout, *more), fused_attention=fused)


@functools.cache
def whole(layout, *more):
    """The same without any of it."""
    return run(layout, *more)


def same(mine, theirs, which):
    for step, (now, before) in enumerate(zip(mine[0], theirs[0], strict=True)):
        assert now == pytest.approx(before, rel=1e-6), (which, step)
    for a, b in zip(mine[1], theirs[1], strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6), which
    assert torch.allclose(mine[2], theirs[2], atol=1e-6), which


def marked_slow(*values):
    return pytest.param(*values, marks=SLOW)


TENSORWISE, BY_HISTORY = "fp8.recipe=tensorwise", "fp8.recipe=delayed"


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        ("ep2", ()),
        ("ep2", (BY_HISTORY,)),
        ("gathered-cp2-ep2", ()),
        marked_slow("tp2-ep2", ()),
        marked_slow("pp2-vpp2-ep2", ()),
        marked_slow("cp2-ep2", ()),
        marked_slow("ep2", (TENSORWISE, "fp8.expert_rows=route", "fp8.first_layers_bf16=1")),
        marked_slow("pp2-vpp2-ep2", (TENSORWISE,)),
        marked_slow("pp2-vpp2-ep2", (BY_HISTORY,)),
        marked_slow("gathered-cp2-ep2", (TENSORWISE,)),
    ],
)
def test_layers_that_are_taken_apart_train_as_whole_ones(layout, settings):
    expected = whole(layout, *settings)
    for more in (OVERLAP, DELAYED):
        for mine, theirs in zip(run(layout, *settings, *more), expected, strict=True):
            same(mine, theirs, more)


SENT = ("qkv_linear", "core_attn", "attn_proj", "mlp_norm", "expert_fc1", "moe_act")
PARTS = f"overlap.offload_parts={emit([*SENT])}"


def offloaded(config):
    """As `trained`, with tensors of every size sent; how many bytes the host was given."""
    from unittest.mock import patch

    from megatron.core.pipeline_parallel.fine_grained_activation_offload import ChunkOffloadHandler
    from transformer_engine.pytorch.cpu_offload import OffloadableLayerState

    from megatron_qwen3.model import build
    from megatron_qwen3.parallel import overlap

    sent, told = [], overlap.of_model

    def of_host(construct):
        def call(*args, pin_memory=False, **kwargs):
            made = construct(*args, **kwargs)
            if pin_memory:
                sent.append(made.nbytes)
            return made

        return call

    def is_sent(_, tensor):
        kept = isinstance(tensor, torch.nn.Parameter) or hasattr(tensor, "_TE_do_not_offload")
        return tensor.is_contiguous() and not kept

    def of_every_size(config):
        small = {"min_offloaded_tensor_size": 1} if config.overlap.offload_parts else {}
        return told(config) | small

    with (
        patch.object(torch, "empty", of_host(torch.empty)),
        patch.object(torch, "empty_like", of_host(torch.empty_like)),
        patch.object(OffloadableLayerState, "_check_if_offload", is_sent),
        patch.object(  # which megatron-core 0.19 asks
            ChunkOffloadHandler,
            "_can_manage_tensor_for_offload",
            staticmethod(lambda tensor: not isinstance(tensor, torch.nn.Parameter)),
            create=True,
        ),
        patch.object(torch.Tensor, "is_pinned", lambda x: False),
        patch.object(build.overlap, "of_model", of_every_size),
        patch.object(overlap, "check", lambda config: None),
    ):
        return *trained(config), sum(sent)


@pytest.mark.parametrize(
    ("layout", "more"),
    [
        ("ep2", (PARTS, *OVERLAP)),
        ("ep2", ("overlap.offload_layers=3",)),
        pytest.param("ep2", (PARTS,), marks=SLOW),
        pytest.param("pp2-ep2", (PARTS,), marks=SLOW),
    ],
    ids=["parts-beside", "layers", "parts", "parts-of-stages"],
)
def test_activations_that_wait_on_the_host_are_those_that_come_back(layout, more):
    ranks = LAYOUTS[layout][0]
    expected = whole(layout)
    found = run_te_ranks(offloaded, ranks, asked(layout, *more))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[-1] > 0
        same(mine, theirs, more)


def built(config):
    """The buffers that are made before the model, and the parts of a layer that send from them."""
    from unittest.mock import patch

    from transformer_engine.pytorch.module import base

    from megatron_qwen3.parallel.runtime import start
    from megatron_qwen3.training.engine import Engine

    given = []

    def initialize(**buffers):
        given.append(buffers["shape"])
        base._ub_initialized = True  # which layers look for while they are made

    os.environ["UB_SKIPMC"] = "1"  # the stand-in has no multicast
    with patch.object(base, "initialize_ub", initialize):
        engine = Engine(config, start(config))
    base.destroy_ub()
    flags = ("ub_overlap_ag_fprop", "ub_overlap_rs_fprop")
    layer = engine.model.chunks[0].decoder.layers[0]
    sending = {
        name: [flag[-8:-6] for flag in flags if getattr(module, flag, False)]
        for name, module in layer.named_modules()
    }
    return given, {name: kinds for name, kinds in sending.items() if kinds}


def test_products_of_tensor_ranks_send_from_buffers_that_were_made_before_them():
    dense = ("model.preset=tiny-dense", "model.kind=te", "parallel.tensor=2")
    lengths = ("train.steps=1", "data.sequence_length=32", "overlap.tensor=true")
    expected = {
        "self_attention.linear_qkv": ["ag"],
        "self_attention.linear_proj": ["rs"],
        "mlp.linear_fc1": ["ag"],
        "mlp.linear_fc2": ["rs"],
    }
    config = load([], [*dense, *lengths])
    for given, sending in run_te_ranks(built, 2, config):
        assert given == [[32, config.model.hidden_size]]
        assert sending == expected
