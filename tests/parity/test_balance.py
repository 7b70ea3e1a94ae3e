"""The balance loss of a step is E · Σ f_e P_e of its global batch, as transformers' model says it.

With "this_batch" both are of the batch that is trained; with "last_step" f_e is of the one before.
The two batches have no token in common, so that each expert's share differs between them.
"""

import pytest
import torch
from ranks import run_ranks
from shards import assemble, local_shards
from theirs import as_theirs, as_trained, randomize, theirs

from megatron_qwen3.config import load
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import Objective, per_token

pytest.importorskip("transformers")

COEFFICIENT, ROWS, POSITIONS = 0.3, 6, 24


def configuration(balance, *settings):
    base = ["model.preset=tiny-moe", "train.steps=2", "train.precision=fp32"]
    base += [f"model.router_aux_loss={COEFFICIENT}", f"model.router_balance={balance}"]
    base += ["optim.distributed=false", "optim.clip_grad=0.0", f"data.sequence_length={POSITIONS}"]
    return load([], [*base, *settings])


def batches():
    random = torch.Generator().manual_seed(3)
    return [
        first + torch.randint(0, 30, (ROWS, POSITIONS), generator=random) for first in (20, 300)
    ]


no_loss = Objective(
    log_probs, lambda outputs, _: {"zero": 0 * outputs["log_prob"]}, {"zero": per_token}
)


def trained(*settings):
    """Weights, and by model.router_balance the gradients and metrics of the second step."""
    layout, results = None, {}
    for balance in ("last_step", "this_batch"):
        config = configuration(balance, *settings)
        layout = layout or start(config)
        engine = Engine(config, layout)
        for model in engine.model.chunks:
            randomize(model)
        engine.optimizer.reload_model_params()
        for tokens_BS in batches():
            mine_BS = tokens_BS.chunk(layout.data)[engine.data_rank]
            # At a rate of 0 both steps see the same weights.
            metrics = engine.train_step(TokenBatch.of(mine_BS, mine_BS), no_loss, 0.0)
        gradients = local_shards(engine.model.chunks, lambda p: getattr(p, "main_grad", None))
        results[balance] = gradients, metrics
    return local_shards(engine.model.chunks, lambda p: p), results


def router_probabilities(network, tokens_BS):
    """[layer][T, E], from the inputs of transformers' gates."""
    probabilities = []

    def note(gate, arguments, _):
        hidden_TH = arguments[0].reshape(-1, gate.weight.shape[1])
        probabilities.append((hidden_TH @ gate.weight.t()).softmax(-1))

    hooks = [layer.mlp.gate.register_forward_hook(note) for layer in network.model.layers]
    network(tokens_BS)
    for hook in hooks:
        hook.remove()
    return probabilities


def shares(probs_TE, chosen):
    experts = probs_TE.topk(chosen).indices.flatten()
    return torch.bincount(experts, minlength=probs_TE.shape[1]) / experts.numel()


def reference(network, model, batch_of_shares):
    """Mean over layers of E · Σ f P of the second batch, and the gradients of the loss."""
    first, second = (router_probabilities(network, tokens_BS) for tokens_BS in batches())
    losses = [
        model.num_experts * (shares(old.detach(), model.experts_per_token) * new.mean(0)).sum()
        for old, new in zip((first, second)[batch_of_shares], second, strict=True)
    ]
    network.zero_grad()
    (COEFFICIENT * sum(losses)).backward()
    gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    return sum(losses).item() / len(losses), gradients


LAYOUTS = {
    "one-rank": (1, ("train.micro_batch=4",)),
    "tp2-ep2": (2, ("train.micro_batch=2", "parallel.tensor=2", "parallel.expert=2")),
    "dp2-recompute": (2, ("train.micro_batch=1", "parallel.recompute=full")),
}
CASES = ["one-rank", "tp2-ep2", pytest.param("dp2-recompute", marks=pytest.mark.slow)]


@pytest.mark.parametrize("layout", CASES)
def test_balance_gradient_of_a_model_is_that_of_the_formula_over_the_global_batch(layout):
    ranks, settings = LAYOUTS[layout]
    results = run_ranks(trained, ranks, *settings)
    model = configuration("last_step").model
    weights = as_theirs(as_trained(assemble([weights for weights, _ in results])), model)
    network = theirs(model, weights)
    (old_loss, old), (new_loss, new) = (reference(network, model, batch) for batch in (0, 1))
    for balance, expected in (("last_step", old), ("this_batch", new)):
        shards = assemble([by_balance[balance][0] for _, by_balance in results])
        gradients = as_theirs(as_trained(shards), model)
        for name, gradient in expected.items():
            apart = (gradients[name] - gradient).norm()
            assert apart <= 2e-5 * gradient.norm(), (balance, name, apart, gradient.norm())
    gates = [torch.cat([g[n].flatten() for n in g if "gate.weight" in n]) for g in (old, new)]
    assert torch.cosine_similarity(*gates, dim=0) < 0.9
    last_step, this_batch = (results[0][1][balance][1] for balance in ("last_step", "this_batch"))
    assert last_step["aux_loss_last_step"] == pytest.approx(old_loss, rel=1e-5)
    assert last_step["aux_loss"] == this_batch["aux_loss"] == pytest.approx(new_loss, rel=1e-5)
    assert "aux_loss_last_step" not in this_batch
