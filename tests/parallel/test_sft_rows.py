"""Packed dialogs train and score as each does alone, however rows and ranks share them."""

import functools

import dialog_sets
import numpy as np
import pytest
import torch
from layouts import CASES, MODELS, SLOW_CASES, cases
from ranks import run_ranks
from shards import assemble, difference, local_shards

from megatron_qwen3.config import load
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.dialogs.dialog_set import MODES
from megatron_qwen3.posttrain.rows.dialog_mixture import DialogMixture
from megatron_qwen3.posttrain.rows.dialog_rows import arrays_of
from megatron_qwen3.posttrain.rows.held_out_loss import evaluate
from megatron_qwen3.posttrain.sft import objective
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model

ROWS, LENGTH = 8, 32
TRAINED = (("token", "cross_entropy"), ("dialog", "dft"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    random = np.random.default_rng(4)
    lengths = random.integers(2, LENGTH + 2, 60).tolist()
    dialog_sets.write(folder / "a", lengths, 1, weight=random.integers(1, 4, 60))
    labels = {"labels": ("x", "y"), "source": np.arange(60) % 2}
    labels["dialog"] = np.arange(60) // 3
    dialog_sets.write(folder / "b", random.integers(4, 12, 60).tolist(), 2, **labels)
    return str(folder)


def config_of(folder, *more):
    sources = [{"name": name, "path": f"{folder}/{name}"} for name in "ab"]
    base = dialog_sets.settings(*sources, length=LENGTH, batch=ROWS)
    base += ["train.steps=2", "optim.distributed=false", "optim.clip_grad=0.0", "sft.held_out=0.2"]
    # The router's loss is of rows, which differ; four layers are two stages of two ranks.
    return load([], [*base, "model.router_aux_loss=0.0", "model.num_layers=4", *more])


def stepped(folder, packed, *settings):
    """Of each loss and objective: metrics and gradients of a step on the packed rows."""
    results, engine = [], None
    for loss, name in TRAINED:
        config = config_of(folder, *settings, f"sft.loss={loss}", f"sft.objective={name}")
        engine = engine or Engine(config, start(config))
        mixture = DialogMixture(config)
        rows = mixture.rows(0, ROWS)
        if not packed:
            rows = [[place] for row in rows for place in row]
        count = len(rows) // engine.layout.data
        mine = rows[engine.data_rank * count : (engine.data_rank + 1) * count]
        batch = TokenBatch.of_arrays(arrays_of(mine, mixture, LENGTH, loss))
        metrics = engine.train_step(batch, objective(config), 0.0)
        gradients = local_shards(engine.model.chunks, lambda p: getattr(p, "main_grad", None))
        results.append((metrics, gradients))
    return results


def one_by_one(folder, *settings):
    """The same by autograd from the definition, each sample alone and without padding."""
    config = config_of(folder, *settings)
    mixture = DialogMixture(config)
    (model,) = Model(config, start(config)).chunks
    places = [place for row in mixture.rows(0, ROWS) for place in row]
    filled = sum(map(mixture.places, places)) / (ROWS * LENGTH)
    results = []
    for loss, name in TRAINED:
        mean, trained_tokens = by_definition(model, mixture, places, loss, name)
        gradients = torch.autograd.grad(mean, list(model.parameters()))
        metrics = {"loss": mean.item(), "trained_tokens": trained_tokens, "filled": filled}
        results.append((metrics, of_parameters(model, gradients)))
    return results


def of_parameters(model, gradients):
    named = dict(zip(map(id, model.parameters()), gradients, strict=True))
    return local_shards([model], lambda p: named.get(id(p)))


def by_definition(model, mixture, places, loss, name):
    """The loss as a mean over tokens or dialogs, and how many tokens are trained."""
    nats, count, trained_tokens = 0.0, 0.0, 0
    for place in places:
        ids, trained = mixture.sample(place)
        nats_S = -alone(model, ids)[torch.from_numpy(trained[1:])].double()
        if name == "dft":
            nats_S = nats_S * (-nats_S.detach()).exp()
        weight = mixture.weight(place)
        if loss == "dialog" and place.source == 1:
            weight /= 3  # samples of each dialog
        nats = nats + weight * (nats_S.sum() if loss == "token" else nats_S.mean())
        count += weight * (len(nats_S) if loss == "token" else 1)
        trained_tokens += len(nats_S)
    return nats / count, trained_tokens


def alone(model, ids):
    """log p of each token but the first, of one sample in a row of its own length."""
    tokens, labels = (torch.from_numpy(part)[None] for part in (ids[:-1], ids[1:]))
    batch = TokenBatch.of(tokens, labels)
    return log_probs.compute(model(batch.tokens_BS), batch)["log_prob"][0]


@functools.cache
def expected(model, folder):
    return run_ranks(one_by_one, 1, folder, *MODELS[model])[0]


def assert_same(results_of_ranks, expected_results, leaving_out=()):
    for ranks, (metrics, gradients) in zip(
        zip(*results_of_ranks, strict=True), expected_results, strict=True
    ):
        for told, _ in ranks:
            for name in metrics.keys() - set(leaving_out):
                assert told[name] == pytest.approx(metrics[name], rel=1e-6), name
        actual, wanted = assemble([shards for _, shards in ranks]), assemble([gradients])
        relative, name = difference(actual, wanted)
        assert relative < 1e-5, f"{name} is off by {relative:.1e} of its norm"
        for name, whole in actual.items():
            torch.testing.assert_close(whole, wanted[name], rtol=0, atol=1e-6, msg=name)


QUICK = ("dense-pp2-vpp2", "dense-cp2", "moe-dp2", "moe-tp2-ep2")
LAYOUTS = [
    case for case in (*CASES, *SLOW_CASES) if case.model in ("dense", "moe") and case.ranks <= 4
]


@cases(
    [case for case in LAYOUTS if f"{case.model}-{case.name}" in QUICK],
    [case for case in LAYOUTS if f"{case.model}-{case.name}" not in QUICK],
)
def test_packed_dialogs_train_as_one_by_one_in_every_layout(case, folder):
    results = run_ranks(stepped, case.ranks, folder, True, *case.settings)
    assert_same(results, expected(case.model, folder))


@pytest.mark.parametrize("model", ["dense", "moe"])
def test_loss_and_gradient_depend_neither_on_packing_nor_on_micro_batches(model, folder):
    for packed, micro_batch in ((True, 4), (False, 1)):
        settings = (*MODELS[model], f"train.micro_batch={micro_batch}")
        results = run_ranks(stepped, 1, folder, packed, *settings)
        assert_same(results, expected(model, folder), () if packed else ("filled",))


def test_the_balance_of_experts_does_not_depend_on_packing_either(folder):
    """The router's loss is of all tokens that are no padding, and those are the same."""
    balanced = ("model.router_aux_loss=0.5", "model.router_balance=this_batch")
    settings = (*MODELS["moe"], *balanced)
    packed = run_ranks(stepped, 2, folder, True, *settings, "train.micro_batch=2")
    apart = run_ranks(stepped, 1, folder, False, *settings)
    plain = run_ranks(stepped, 1, folder, False, *MODELS["moe"])
    assert_same(packed, apart[0], ("filled",))
    assert packed[0][0][0]["grad_norm"] != pytest.approx(plain[0][0][0]["grad_norm"], rel=1e-3)


def scored(folder, *settings):
    config = config_of(folder, *settings)
    model = Model(config, start(config))
    found = evaluate(model, DialogMixture(config), config, lambda: True)
    assert evaluate(model, DialogMixture(config), config, lambda: False) is None
    return {name: (result.loss, result.tokens) for name, result in found.items()}


@torch.no_grad()
def scored_one_by_one(folder, *settings):
    """Loss and tokens of each held-out group, from the definition."""
    config = config_of(folder, *settings)
    (model,) = Model(config, start(config)).chunks
    mixture, groups = DialogMixture(config), {}
    for place in (place for row in mixture.held_out(config.eval.tokens) for place in row):
        ids, trained = mixture.sample(place)
        nats_S = -alone(model, ids)[torch.from_numpy(trained[1:])].double()
        names = ["ab"[place.source], "all"]
        names += [f"b: {'xy'[place.sample % 2]}"] if place.source else []
        names += [f"mode {MODES[mixture.mode(place)]}"] if mixture.mode(place) else []
        for name in names:
            groups.setdefault(name, []).append(nats_S)
    joined = {name: torch.cat(parts) for name, parts in groups.items()}
    return {name: (nats.mean().item(), len(nats)) for name, nats in joined.items()}


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, ()),
        (2, ("train.micro_batch=2",)),
        (2, ("parallel.tensor=2", "parallel.expert=2")),
        pytest.param(2, ("parallel.pipeline=2",), marks=pytest.mark.slow),
    ],
)
def test_held_out_loss_is_that_of_the_trained_tokens_by_source_and_mode(ranks, settings, folder):
    wanted = run_ranks(scored_one_by_one, 1, folder)[0]
    modes = {"mode thinking", "mode non-thinking"}
    assert set(wanted) == {"a", "b", "b: x", "b: y", "all", *modes}
    for found in run_ranks(scored, ranks, folder, *settings):
        assert found.keys() == wanted.keys()
        for name, (loss, tokens) in wanted.items():
            assert found[name][1] == tokens
            assert found[name][0] == pytest.approx(loss, rel=1e-5)
