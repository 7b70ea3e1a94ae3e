"""Scores of a split vocabulary equal those of a whole one, derivatives included."""

from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.model.logits import Logits, OutputLayer
from megatron_qwen3.model.tiles import LEAST_LOG_REST, TILE_BYTES
from megatron_qwen3.parallel.runtime import start

S, B, H, V, K = 8, 3, 16, 192, 4
TILES = (TILE_BYTES, 1024)


def inputs(dtype):
    random = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(S, B, H, generator=random), torch.randn(V, H, generator=random)
    hidden[0, 0], weight[7] = 4.0, 4.0
    hidden[0, 0, 0] = 20.0  # one sure token: other ranks' logits vanish beside it
    ids = 8 + torch.rand(S, B, V - 8, generator=random).argsort(-1)[..., :K]  # distinct, not 7
    ids[..., -1] = ids[..., 0]  # but the last one, which the rest does not ask about
    grads = [torch.randn(shape, generator=random) for shape in ((S, B, K), *[(S, B)] * 3)]
    return hidden.to(dtype), weight.to(dtype), ids, grads


def on_ranks(ranks, dtype, is_sequence_parallel):
    from megatron.core import parallel_state

    settings = [f"parallel.tensor={ranks}", "train.steps=1", "model.num_query_groups=4"]
    start(load([], ["model.preset=tiny-dense", *settings]))
    group = parallel_state.get_tensor_model_parallel_group()
    rank = group.rank()
    hidden, weight, ids, grads = inputs(dtype)
    if is_sequence_parallel:
        hidden = hidden.chunk(ranks)[rank]
    answers = []
    for tile_bytes in TILES:
        mine = weight.chunk(ranks)[rank].clone().requires_grad_()
        h = hidden.clone().requires_grad_()
        layer = SimpleNamespace(tp_group=group, sequence_parallel=is_sequence_parallel, weight=mine)
        whole = OutputLayer.forward(layer, h)
        logits = Logits(whole.hidden_SBH, whole.weight_vH, whole.group, tile_bytes)
        scores = logits.scores(ids, with_entropy=True, rest_of=K - 1)
        sum((x * g).sum() for x, g in zip(scores, grads, strict=True)).backward()
        values = [x.detach() for x in scores]
        answers.append((values, h.grad, mine.grad, logits.top_k(V // 2)))
    return answers


def reference(dtype):
    hidden, weight, ids, grads = inputs(dtype)
    hidden, weight = (x.double().requires_grad_() for x in (hidden, weight))
    logits = hidden @ weight.t()
    log_p = logits.log_softmax(-1)
    others = log_p.scatter(-1, ids[..., : K - 1], -torch.inf).logsumexp(-1)
    values = log_p.gather(-1, ids), logits.logsumexp(-1), -(log_p.exp() * log_p).sum(-1), others
    sum((x * g).sum() for x, g in zip(values, grads, strict=True)).backward()
    return [x.detach() for x in values], hidden.grad, weight.grad, log_p.detach()


def near(ours, theirs, tolerance):
    torch.testing.assert_close(
        ours.double(), theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item()
    )


@pytest.mark.parametrize(
    "ranks, is_sequence_parallel", [(1, False), (2, False), (2, True), (4, False), (4, True)]
)
def test_values_and_gradients_equal_those_of_whole_logits(ranks, is_sequence_parallel):
    values, of_hidden, of_weight, log_p = reference(torch.float32)
    results = run_ranks(on_ranks, ranks, ranks, torch.float32, is_sequence_parallel)
    for answers in zip(*results, strict=True):
        for ours, *_, (most, ids, log_rest) in answers:
            for mine, theirs in zip(ours, values, strict=True):
                near(mine, theirs, 1e-6)
            best = log_p.topk(V // 2).values
            near(most, best, 1e-6)
            near(log_p.gather(-1, ids).float(), best, 1e-6)
            others = log_p.sort(-1).values[..., : V - V // 2].logsumexp(-1)
            near(log_rest, others.clamp_min(LEAST_LOG_REST), 1e-6)
            assert ids.equal(answers[0][3].ids)
        parts = [answer[1] for answer in answers]
        for part in [torch.cat(parts)] if is_sequence_parallel else parts:
            near(part, of_hidden, 1e-6)
        near(torch.cat([answer[2] for answer in answers]), of_weight, 1e-6)


def test_two_ranks_in_bfloat16_are_as_near_as_bfloat16_is():
    values, of_hidden, of_weight, _ = reference(torch.bfloat16)
    results = run_ranks(on_ranks, 2, 2, torch.bfloat16, False)
    for answers in zip(*results, strict=True):
        for ours, of_my_hidden, *_ in answers:
            for mine, theirs in zip(ours, values, strict=True):
                near(mine, theirs, 1e-2)
            near(of_my_hidden, of_hidden, 2e-2)
        near(torch.cat([answer[2] for answer in answers]), of_weight, 2e-2)
