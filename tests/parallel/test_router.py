"""The balance loss is one of the global batch: its gradient knows no layout and no micro-batch."""

import functools

import pytest
import torch
from ranks import run_ranks
from shards import assemble, difference, local_shards

from megatron_qwen3.config import load
from megatron_qwen3.model.build import transformer_config
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.model.router import Router
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import Objective, per_token

COEFFICIENT = 0.7
SETTINGS = (
    "model.preset=tiny-moe",
    f"model.router_aux_loss={COEFFICIENT}",
    "train.steps=2",
    "train.precision=fp32",
    "train.global_batch=8",
    "data.sequence_length=32",
    "optim.distributed=false",
    "optim.clip_grad=0.0",
)


def router_gradients(hidden_TH, share_E, micro_batches, of_micro_batch=False):
    """Gradients of router weight and hidden states, by the router and by plain autograd."""
    config = load([], SETTINGS)
    router = Router(transformer_config(config, Layout.of(config, 1)))
    weight = torch.linspace(-1, 1, router.weight.numel()).sin().view_as(router.weight)
    router.weight.data.copy_(weight)
    router.expert_share.copy_(share_E)
    router.begin_step(len(hidden_TH), of_micro_batch=of_micro_batch)
    hidden_TH.requires_grad_()
    for micro_TH in hidden_TH.chunk(micro_batches):
        probs_TK, _ = router(micro_TH)
        (0 * probs_TK).sum().backward()
    actual = router.weight.grad, hidden_TH.grad

    weight.requires_grad_()
    plain_TH = hidden_TH.detach().clone().requires_grad_()
    probs_TE = (plain_TH @ weight.t()).softmax(-1)
    parts = probs_TE.chunk(micro_batches if of_micro_batch else 1)
    for part_TE in parts:
        chosen = part_TE.topk(router.experts_per_token).indices.flatten().bincount(minlength=8)
        f_E = chosen / chosen.sum() if of_micro_batch else share_E
        loss = COEFFICIENT * len(share_E) * (f_E * part_TE.mean(0)).sum() / len(parts)
        loss.backward(retain_graph=True)
    return actual, (weight.grad, plain_TH.grad)


def test_balance_of_each_micro_batch_is_the_mean_of_their_losses():
    random = torch.Generator().manual_seed(3)
    given = torch.randn(96, 64, generator=random), torch.rand(8, generator=random).softmax(0)
    actual, expected = run_ranks(router_gradients, 1, *given, 4, True)[0]
    for gradient, plain in zip(actual, expected, strict=True):
        assert plain.abs().max() > 1e-4
        torch.testing.assert_close(gradient, plain, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_balance_gradient_is_that_of_experts_times_share_times_mean_probability(micro_batches):
    random = torch.Generator().manual_seed(3)
    hidden_TH = torch.randn(96, 64, generator=random)
    share_E = torch.rand(8, generator=random).softmax(0)
    actual, expected = run_ranks(router_gradients, 1, hidden_TH, share_E, micro_batches)[0]
    for gradient, plain in zip(actual, expected, strict=True):
        assert plain.abs().max() > 1e-4
        torch.testing.assert_close(gradient, plain, rtol=1e-5, atol=1e-8)


no_loss = Objective(
    log_probs, lambda outputs, _: {"zero": 0 * outputs["log_prob"]}, {"zero": per_token}
)


def balance_only(*settings):
    """By model.router_balance: metrics and weights of two steps of the balance loss alone.

    The batches are of two domains, as it were: no token is in both.
    """
    layout, results = None, {}
    for balance in ("last_step", "this_batch"):
        config = load([], [*SETTINGS, *settings, f"model.router_balance={balance}"])
        layout = layout or start(config)
        engine = Engine(config, layout)
        for first_token in (0, 400):
            random = torch.Generator().manual_seed(5)
            tokens_BS = first_token + torch.randint(0, 100, (8, 32), generator=random)
            mine_BS = tokens_BS.chunk(layout.data)[engine.data_rank]
            # Without a step between: Adam makes whole updates of gradients that are but rounding.
            metrics = engine.train_step(TokenBatch.of(mine_BS, mine_BS), no_loss, 0.0)
        results[balance] = {
            "gradients": local_shards(engine.model.chunks, lambda p: getattr(p, "main_grad", None)),
            "metrics": metrics,
            "share": next(iter(engine.balance.routers.values())).expert_share,
        }
    return results


@functools.cache
def one_rank_one_micro_batch():
    return run_ranks(balance_only, 1, "train.micro_batch=8")[0]


LAYOUTS = {
    "micro-batches": (1, ()),
    "dp4": (4, ()),
    "ep2": (2, ("parallel.expert=2",)),
    "tp2-dp2": (4, ("parallel.tensor=2",)),
    "pp2-recompute": (2, ("parallel.pipeline=2", "parallel.recompute=full")),
    "pp2-vpp2": (2, ("parallel.pipeline=2", "parallel.virtual_pipeline=2")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_balance_gradient_does_not_depend_on_ranks_or_micro_batches(layout):
    ranks, settings = LAYOUTS[layout]
    results = run_ranks(balance_only, ranks, "train.micro_batch=1", *settings)
    for balance, expected in one_rank_one_micro_batch().items():
        assert expected["share"].std() > 1e-3
        of_ranks = [result[balance] for result in results]
        for run in of_ranks:
            assert run["metrics"] == pytest.approx(expected["metrics"], rel=2e-6)
        gradients = assemble([run["gradients"] for run in of_ranks])
        relative, name = difference(gradients, assemble([expected["gradients"]]))
        assert relative < 1e-5, (balance, name)
        router = next(
            tensor for name, tensor in gradients.items() if name.endswith("router.weight")
        )
        assert router.norm() > 1e-4
