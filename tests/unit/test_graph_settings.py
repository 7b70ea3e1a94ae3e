"""CUDA graphs by settings: options of megatron-core, and errors in one line."""

from types import SimpleNamespace

import pytest
import torch

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.parallel import overlap
from megatron_qwen3.parallel.mcore import TransformerConfig
from megatron_qwen3.training import graphs, reader
from tests.unit.test_overlap import DENSE, SPARSE, asked, told_model

BOTH = 'overlap.cuda_graphs=["attn","mlp"]'
ROUTED = 'overlap.cuda_graphs=["attn","moe_router"]'


@pytest.mark.parametrize(
    ("given", "parts"),
    [((*DENSE, BOTH), ["attn", "mlp"]), ((*SPARSE, ROUTED), ["attn", "moe_router"]), (DENSE, [])],
)
def test_the_parts_reach_megatron_core_under_the_name_of_its_release(monkeypatch, given, parts):
    found = told_model(monkeypatch, asked(*given))
    name = "cuda_graph_modules" if hasattr(found, "cuda_graph_modules") else "cuda_graph_scope"
    if parts:
        assert found.cuda_graph_impl == "transformer_engine"
        assert [part.name for part in getattr(found, name)] == parts
    else:
        assert found.cuda_graph_impl == TransformerConfig.cuda_graph_impl == "none"


REFUSED = [
    (("model.kind=torch", BOTH), 'needs model.kind = "te", not "torch"'),
    (('overlap.cuda_graphs=["moe_router"]',), "no part of a dense layer"),
    (('overlap.cuda_graphs=["full_iteration"]',), "valid: attn, mlp"),
    (('overlap.cuda_graphs=["attn","attn"]',), "names a part twice"),
    ((BOTH, "data.reset_at_documents=true"), "has documents in them; set it to false"),
    ((BOTH, "parallel.context=2"), "parallel.context = 2 cuts them; set it to 1"),
    ((BOTH, "rope.dca_chunk_size=32", "rope.dca_local_size=16"), "reads them by chunks"),
    ((BOTH, "parallel.recompute=full"), '"attn" is computed again'),
    ((BOTH, "parallel.recompute=selective"), '"mlp" is computed again'),
    ((BOTH, "fp8.recipe=tensorwise"), 'fp8.recipe = "tensorwise"'),
    ((BOTH, "data.loader=dali"), 'set data.loader = "thread"'),
    ((BOTH, 'overlap.offload_parts=["core_attn"]'), "overlap.offload_parts: streams"),
    ((BOTH, "overlap.offload_layers=1"), "overlap.offload_layers: streams"),
    ((BOTH, "overlap.tensor=true", "parallel.tensor=2"), "overlap.tensor: streams"),
]


@pytest.mark.parametrize(
    ("given", "message"), REFUSED, ids=lambda x: x if isinstance(x, str) else x[-1]
)
def test_what_a_graph_cannot_replay_is_refused_in_one_line(given, message):
    with pytest.raises(ConfigError) as caught:
        asked(*DENSE, *given)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_sparse_layers_have_their_own_parts_and_no_micro_batch_beside_another():
    with pytest.raises(ConfigError, match=r"no part of a sparse layer.*valid: attn, moe_router"):
        asked(*SPARSE, BOTH)
    with pytest.raises(ConfigError, match="overlap.experts: streams"):
        asked(*SPARSE, ROUTED, "overlap.experts=true")
    with pytest.raises(ConfigError, match='"moe_router" is computed again'):
        asked(*SPARSE, ROUTED, "parallel.recompute=selective")
    for given in ("parallel.recompute=selective", "parallel.pipeline=2"):
        asked(*SPARSE, 'overlap.cuda_graphs=["attn"]', given)


@pytest.mark.parametrize("mode", ["sft", "reward", "rl", "distill"])
def test_only_whole_rows_of_pretraining_are_replayed(mode):
    with pytest.raises(ConfigError) as caught:
        load([], [*DENSE, BOTH, f"run.mode={mode}"])
    said = [line for line in str(caught.value).splitlines() if "cuda_graphs" in line]
    assert len(said) == 1 and f'run.mode = "{mode}" has texts in them' in said[0]


def test_memory_that_grows_is_refused_where_nccl_would_keep_places_of_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = asked(*DENSE, BOTH)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.delenv(overlap.GRAPH_BUFFERS, raising=False)
    with pytest.raises(ConfigError, match="set NCCL_GRAPH_REGISTER=0, or leave"):
        overlap.check(config)
    monkeypatch.setenv(overlap.GRAPH_BUFFERS, "0")
    overlap.check(config)
    overlap.check(asked(*DENSE))


def test_nobody_pins_memory_while_graphs_are_captured(monkeypatch):
    """CUDA gives a capture up where another thread asks its driver for memory."""
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    batch = SimpleNamespace(pinned=graphs.CAPTURING.locked)
    with reader.BatchReader(lambda step: batch, 1, torch.device("cuda")) as batches:
        assert batches.batch(0, 1) is True
    assert not graphs.CAPTURING.locked()
