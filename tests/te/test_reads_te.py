"""Layers of Transformer Engine read rows, and documents of which none sees another.

Logits are compared with those of torch's layers of the same fresh weights, in the same process, in
float32, and in bf16 by the fused attention that is stood in.
"""

import itertools

import pytest
import torch

from megatron_qwen3.config import load
from megatron_qwen3.model.build import build
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model
from tests.te.te_ranks import run_te_ranks

VOCABULARY, LENGTH = 512, 48
DOCUMENTS = ((48,), (1, 17, 30), (16, 16, 16), (40, 1, 7))  # lengths, by row
MODELS = {
    "dense": ("model.preset=tiny-dense",),
    "moe": ("model.preset=tiny-moe",),
    "yarn": ("model.preset=tiny-dense", "rope.yarn_factor=4", "rope.yarn_original_length=8"),
    "dca": ("model.preset=tiny-dense", "rope.dca_chunk_size=24", "rope.dca_local_size=8"),
}


def tiny(*settings):
    return load([], ["train.steps=1", "train.precision=fp32", "model.init_std=0.1", *settings])


def rows():
    random = torch.Generator().manual_seed(5)
    return torch.randint(0, VOCABULARY, (len(DOCUMENTS), LENGTH), generator=random)


def stretches():
    return Stretches.of([[0, *itertools.accumulate(lengths[:-1])] for lengths in DOCUMENTS], LENGTH)


@torch.no_grad()
def _logits(*settings):
    """[kind, packed or not, S, B, V], and how often the fused kernel was called."""
    from tests.te import stand_in

    layout, found = None, []
    for kind in ("torch", "te"):
        config = tiny(*settings, f"model.kind={kind}")
        layout = layout or start(config)
        (model,) = build(config, layout)
        batches = [TokenBatch.of(rows(), rows(), packed) for packed in (None, stretches())]
        found.append(
            torch.stack([model(b.tokens_BS, b.sequences()).whole().float() for b in batches])
        )
    return torch.stack(found), stand_in.calls["fused_attn_fwd"]


@pytest.mark.parametrize("model", MODELS)
def test_logits_of_rows_and_of_packed_documents_are_those_of_torchs_layers(model):
    ((logits, _),) = run_te_ranks(_logits, 1, *MODELS[model])
    torch_s, te_s = logits
    assert torch_s.std() > 0.3
    assert (te_s - torch_s).abs().max() < 1e-5
    assert (te_s - torch_s).norm() < 1e-6 * torch_s.norm()


@pytest.mark.parametrize("more", [(), ("model.preset=tiny-moe", "model.experts_per_token=8")])
def test_the_fused_attention_reads_them_alike_in_bf16(more):
    """All experts are chosen, or rounding would choose others."""
    settings = (*MODELS["dense"], "train.precision=bf16", *more)
    ((logits, calls),) = run_te_ranks(_logits, 1, *settings, fused_attention=True)
    torch_s, te_s = logits
    assert calls == 2 * 4  # of two batches, in four layers
    assert (te_s - torch_s).norm() < 0.02 * torch_s.norm()


def _scores_of_two(settings):
    """log p of all tokens, with row 1 and again with another document in its middle."""
    config = tiny(*settings, "model.kind=te")
    model, tokens = Model(config, start(config)), rows()
    scores = []
    for _ in range(2):
        batch = TokenBatch.of(tokens, tokens.roll(-1, 1), stretches())
        scores.append(model.score(batch, log_probs)["log_prob"])
        tokens[1, 1:18] = (tokens[1, 1:18] + 7) % VOCABULARY
    return scores


@pytest.mark.parametrize(
    "settings, fused",
    [
        (("model.preset=tiny-dense",), False),
        (("model.preset=tiny-dense", "train.precision=bf16"), True),
        (("model.preset=tiny-dense", "rope.dca_chunk_size=24", "rope.dca_local_size=8"), False),
    ],
)
def test_no_document_sees_another_of_its_row(settings, fused):
    ((before, after),) = run_te_ranks(_scores_of_two, 1, settings, fused_attention=fused)
    changed = torch.zeros(len(DOCUMENTS), LENGTH, dtype=torch.bool)
    changed[1, 0:18] = True  # the label before the document is of it, too
    assert torch.equal(before[~changed], after[~changed])
    assert (before != after)[changed].float().mean() > 0.9


def _padded():
    """Routers' counts of a step of whose positions some are padding, by kind."""
    from megatron_qwen3.training.engine import Engine
    from megatron_qwen3.training.objectives import cross_entropy

    layout, found = None, []
    for kind in ("torch", "te"):
        config = tiny("model.preset=tiny-moe", "train.global_batch=4", f"model.kind={kind}")
        layout = layout or start(config)
        engine = Engine(config, layout)
        valid = torch.arange(LENGTH) < torch.tensor([48, 20, 33, 1])[:, None]
        batch = TokenBatch(rows(), rows().roll(-1, 1), valid.float(), None, valid)
        metrics = engine.train_step(batch, cross_entropy, 1e-3)
        sums = [router.sums for router in engine.balance.routers.values()]
        found.append((metrics, torch.stack(sums)))
    return found


def test_padding_counts_for_nothing_in_the_balance_of_experts():
    (((metrics, sums), (metrics_te, sums_te)),) = run_te_ranks(_padded, 1)
    assert metrics_te == pytest.approx(metrics, rel=1e-6)
    assert torch.equal(sums_te[:, 0], sums[:, 0]) and sums[0, 0].sum() == 2 * (48 + 20 + 33 + 1)
    torch.testing.assert_close(sums_te, sums, rtol=1e-6, atol=1e-6)
