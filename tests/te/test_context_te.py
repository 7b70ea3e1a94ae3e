"""Context ranks share rows under layers of Transformer Engine, too.

By our exchange they are compared as tests/te/test_layouts_te.py compares its layouts, in float32.
By Transformer Engine's own, which takes bf16 alone, with one rank of the same layers: rows of one
text, and packed documents with padding. Kernels are stood in; its ring ("p2p") waits for ever in
gloo's backward pass, and is for GPUs alone.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from layouts import (
    PLAIN,
    SHARDED,
    Case,
    assert_same_runs,
    cases,
    global_batches,
    one_rank,
    tiny,
    train,
)
from shards import assemble, difference, local_shards

from megatron_qwen3.model.build import build
from megatron_qwen3.model.context import ContextShare
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.objectives import cross_entropy
from tests.te.te_ranks import run_te_ranks

CASES = (Case("moe", "cp2-ep2", 2, "context=2 expert=2", 2),)
SLOW_CASES = (
    Case("dense-dca", "cp2", 2, "context=2"),
    Case("dense", "cp2-recompute-full", 2, "context=2 recompute=full", 2),
    Case("dense-yarn", "cp2", 2, "context=2", 2),
    Case("moe", "cp2-tp2", 4, "context=2 tensor=2", 2),
    Case("dense", "cp2-pp2", 4, "context=2 pipeline=2", 2),
)


@cases(CASES, SLOW_CASES)
def test_context_ranks_train_as_one_rank_of_torchs_layers_does(case):
    settings = [(*case.settings, *more, "model.kind=te") for more in (PLAIN, SHARDED)]
    assert_same_runs(run_te_ranks(train, case.ranks, *settings), one_rank(case.model))


# All experts are chosen, or rounding would choose others.
BF16 = ("model.kind=te", "train.precision=bf16", "model.init_std=0.1", *PLAIN)
EVERY_EXPERT = "model.experts_per_token=8"


def batches():
    """Rows of one text, and documents that share rows, of which one row ends with padding."""
    plain, packed, _ = global_batches(ragged=True)
    valid_BS = torch.ones_like(packed.tokens_BS, dtype=torch.bool)
    valid_BS[6, 20:] = False
    packed.weights_BS[6, 20:] = 0
    return plain, replace(packed, valid_BS=valid_BS)


def _read_and_trained(settings):
    """Of each batch, with the same weights: log p, loss and gradients; then routers' inputs."""
    config = tiny(*settings)
    engine = Engine(config, start(config))
    found = []
    for batch in batches():
        scores = engine.model.score(batch, log_probs)["log_prob"]
        metrics = engine.train_step(batch, cross_entropy, 0.0)
        gradients = local_shards(engine.model.chunks, lambda p: getattr(p, "main_grad", None))
        counts = [router.sums[0].sum() for router in engine.balance.routers.values()]
        found.append((scores, metrics, gradients, counts, batch.valid_BS))
    return found


CASES_OF_TE = (
    Case("dense", "all_gather", 2, "context=2 context_exchange=all_gather", 2),
    Case("dense", "a2a", 2, "context=2 context_exchange=a2a", 2),
)
SLOW_CASES_OF_TE = (
    Case("moe", "all_gather", 2, "context=2 context_exchange=all_gather expert=2", 4),
    Case("moe", "a2a-recompute", 2, "context=2 context_exchange=a2a recompute=full", 4),
    Case("moe", "tp2", 4, "context=2 context_exchange=all_gather tensor=2", 4),
    Case("dense", "pp2", 4, "context=2 context_exchange=all_gather pipeline=2", 2),
    Case("dense-yarn", "all_gather", 2, "context=2 context_exchange=all_gather", 2),
)


@cases(CASES_OF_TE, SLOW_CASES_OF_TE)
def test_by_transformer_engines_exchange_they_read_and_train_as_one_rank_does(case):
    more = (*BF16, *([EVERY_EXPERT] if case.model.startswith("moe") else []))
    expected = _without_context_ranks(case, more)
    settings = (*case.settings, *more)
    of_ranks = run_te_ranks(_read_and_trained, case.ranks, settings, fused_attention=True)
    for batch, wanted in zip(zip(*of_ranks, strict=True), expected, strict=True):
        assert_alike(batch, wanted)


def _without_context_ranks(case, more):
    """Of each batch the results of each rank; tensor ranks, which round their sums, are as many."""
    tensor = [setting for setting in case.parallel.split() if setting.startswith("tensor")]
    alone = Case(case.model, "", len(tensor) + 1, " ".join(tensor), 4)
    settings = (*alone.settings, *more)
    of_ranks = run_te_ranks(_read_and_trained, alone.ranks, settings, fused_attention=True)
    return zip(*of_ranks, strict=True)


def assert_alike(of_ranks, expected_of_ranks):
    scores, metrics, _, counts, valid_BS = expected_of_ranks[0]
    is_text_BS = torch.ones_like(scores, dtype=torch.bool) if valid_BS is None else valid_BS
    assert scores.std() > 0.3
    for found, *_ in of_ranks:
        assert (found - scores)[is_text_BS].norm() < 1e-2 * scores.norm()
    for name, number in metrics.items():
        assert of_ranks[0][1][name] == pytest.approx(number, rel=1e-2), name
    found, wanted = (assemble([rank[2] for rank in x]) for x in (of_ranks, expected_of_ranks))
    assert norm({name: found[name] - wanted[name] for name in wanted}) < 1e-2 * norm(wanted)
    # Attention rounded otherwise, as by our exchange, moves a norm's small gradient by as much.
    relative, name = difference(found, wanted)
    assert relative < 2e-2, f"{name} is off by {relative:.1e} of its norm"
    assert len(counts) in (0, 4)
    for counts_of_ranks in zip(*(rank[3] for rank in of_ranks), strict=True):
        assert sum(counts_of_ranks) == 8 * is_text_BS.sum()


def norm(gradients):
    return sum(gradient.norm() ** 2 for gradient in gradients.values()) ** 0.5


def _scores_of_two(*settings):
    """log p of all tokens, and again with another document in the middle of row 1."""
    config = tiny(*settings)
    model, scores = Model(config, start(config)), []
    _, batch = batches()
    tokens_BS = batch.tokens_BS.clone()
    for _ in range(2):
        read = replace(batch, tokens_BS=tokens_BS.clone())
        scores.append(model.score(read, log_probs)["log_prob"])
        tokens_BS[1, 2:7] = (tokens_BS[1, 2:7] + 7) % 512
    return scores


@pytest.mark.parametrize("exchange", ["own", "all_gather", "a2a"])
def test_no_document_sees_another_of_its_row_on_any_rank(exchange):
    settings = ("model.preset=tiny-dense", *BF16, "parallel.context=2", "train.micro_batch=2")
    way = f"parallel.context_exchange={exchange}"
    for before, after in run_te_ranks(_scores_of_two, 2, *settings, way, fused_attention=True):
        changed = torch.zeros_like(before, dtype=torch.bool)
        changed[1, 2:7] = True
        assert torch.equal(before[~changed], after[~changed])
        assert (before != after)[changed].all()


def _losses(*settings):
    config = tiny(*settings)
    engine = Engine(config, start(config))
    return [engine.train_step(batch, cross_entropy, 0.0)["loss"] for batch in batches()]


@pytest.mark.slow
def test_documents_fill_the_rows_that_products_in_fp8_take():
    base = ("model.preset=tiny-dense", *BF16, "fp8.recipe=tensorwise", "train.micro_batch=2")
    more = ("parallel.context=2", "parallel.context_exchange=all_gather")
    (expected,) = run_te_ranks(_losses, 1, *base, fused_attention=True)
    for losses in run_te_ranks(_losses, 2, *base, *more, fused_attention=True):
        assert losses == pytest.approx(expected, rel=5e-3)


def _masked():
    config = tiny("model.preset=tiny-dense", "model.kind=te")
    (chunk,) = build(config, start(config))
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="causal attention ignores masks"):
        chunk.decoder.layers[0](torch.zeros(4, 1, 64), attention_mask=mask)


def test_no_mask_is_left_out_silently():
    run_te_ranks(_masked, 1)


def test_documents_are_never_cut_as_one_text_is():
    _, packed = batches()
    group = SimpleNamespace(rank=lambda: 0, size=lambda: 2)
    with pytest.raises(AssertionError, match="would mix documents"):
        packed.sequences(ContextShare(group, attends=False))
