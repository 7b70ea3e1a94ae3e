"""Heads give the values that torch computes of whole logits, on every rank of any layout."""

import pytest
import torch
from layouts import tiny
from ranks import run_ranks

from megatron_qwen3.model.distributions import at_ids, log_probs_and_entropy, top_k
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model

ROWS, POSITIONS, K, TEMPERATURE = 8, 16, 5, 0.6
LAYOUTS = {
    "one-rank": (1, ()),
    "tp2-pp2": (4, ("parallel.tensor=2", "parallel.pipeline=2", "train.micro_batch=2")),
    "tp2-dp2": (4, ("parallel.tensor=2", "train.micro_batch=4")),
}


def batch():
    random = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 512, (ROWS, POSITIONS + 1), generator=random)
    asked = torch.randint(0, 512, (ROWS, POSITIONS, K), generator=random)
    weights = torch.ones(ROWS, POSITIONS)
    return TokenBatch(ids[:, :-1], ids[:, 1:], weights, extra={"ids": asked})


def scored(*settings):
    """(first row, outputs by name) of this data rank's share."""
    config = tiny("model.preset=tiny-moe", *settings)
    model = Model(config, start(config))
    mine = list(batch().split(ROWS // model.layout.data))[model.data_rank]
    heads = {
        "plain": log_probs,
        "entropy": log_probs_and_entropy(),
        "tempered": log_probs_and_entropy(TEMPERATURE),
        "k": top_k(K),
        "ids": at_ids(K),
    }
    outputs = {name: model.score(mine, head) for name, head in heads.items()}
    for name, head in heads.items():
        empty = head.empty(mine.rows, POSITIONS, model.device)
        for key, x in outputs[name].items():
            assert (x.shape, x.dtype) == (empty[key].shape, empty[key].dtype), (name, key)
    again = {name: model.score(mine, heads[name])["log_prob"] for name in ("plain", "tempered")}
    assert all(torch.equal(x, outputs[name]["log_prob"]) for name, x in again.items())
    return model.data_rank * mine.rows, outputs


def by_whole_logits():
    config = tiny("model.preset=tiny-moe")
    (model,) = Model(config, start(config)).chunks
    with torch.no_grad():
        logits_BSV = model.eval()(batch().tokens_BS).whole().transpose(0, 1).double()
    log_p = logits_BSV.log_softmax(-1)
    most = log_p.topk(K)
    log_prob = log_p.gather(-1, batch().labels_BS[..., None]).squeeze(-1)
    log_z = logits_BSV.logsumexp(-1)
    log_t = (logits_BSV / TEMPERATURE).log_softmax(-1)
    log_t_of_label = log_t.gather(-1, batch().labels_BS[..., None]).squeeze(-1)
    return {
        "plain": {"log_prob": log_prob, "log_z": log_z},
        "entropy": {"entropy": -(log_p.exp() * log_p).sum(-1), "log_prob": log_prob},
        "tempered": {"entropy": -(log_t.exp() * log_t).sum(-1), "log_prob": log_t_of_label},
        "k": {"log_probs": most.values, "ids": most.indices},
        "ids": {"log_probs": log_p.gather(-1, batch().extra["ids"]), "log_z": log_z},
    }


@pytest.fixture(scope="module")
def expected():
    return run_ranks(by_whole_logits, 1)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heads_equal_torch_on_whole_logits_in_any_layout(layout, expected):
    ranks, settings = LAYOUTS[layout]
    for first, outputs in run_ranks(scored, ranks, *settings):
        for head, named in expected.items():
            for name, whole in named.items():
                got = outputs[head][name]
                wanted = whole[first : first + len(got)].to(got.dtype)
                torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
