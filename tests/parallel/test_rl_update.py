"""An update of a policy is that of its definition, answer by answer, in any layout and packing."""

import functools
from dataclasses import replace

import pytest
import torch
from layouts import CASES, MODELS, RATE, SLOW_CASES, cases, of_an_update
from ranks import run_ranks
from shards import assemble, difference, local_shards

from megatron_qwen3.model.distributions import log_probs_and_entropy
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.policy.objective import policy_objective, trained_answers
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model

ROWS, LENGTH, VOCABULARY = 8, 24, 512
EXTRAS = ("advantage", "old_log_prob", "sampler_log_prob", "reference_log_prob")
COMMON = ("rollouts.temperature=0.7", "rl.kl.coefficient=0.1", "rl.entropy.coefficient=0.01")
VARIANTS = {
    "dapo": ("rl.loss.clip_high=0.28",),
    "gspo": ("rl.loss.ratio=sequence_mean", "rl.loss.mean=sequence_mean", "rl.kl.estimator=k2"),
    "rloo": (
        "rl.loss.ratio=sequence",
        "rl.loss.mean=sequence_sum",
        "rl.loss.importance=sequence_mask",
        "rl.loss.dual_clip=1.25",
    ),
    "cispo": (
        "rl.loss.clip=cispo",
        "rl.loss.mean=constant",
        "rl.loss.length=20",
        "rl.loss.importance=mask",
        "rl.kl.weigh_by_ratio=true",
    ),
}


def rows_of_answers():
    """Of each row its answers: ids, and of each label whether it is trained and its extras."""
    random = torch.Generator().manual_seed(5)

    def number(least, most):
        return int(torch.randint(least, most + 1, (), generator=random))

    rows = []
    for row in range(ROWS):
        answers, left = [], LENGTH
        while left >= 12:
            prompt, length = number(1, 3), number(1, 8)
            ids = torch.randint(0, VOCABULARY, (prompt + length,), generator=random)
            is_trained = torch.arange(1, len(ids)) >= prompt
            if length > 4:
                is_trained[prompt + 2] = False  # a token that was put there
            noise = 0.3 * torch.randn(3, len(ids) - 1, generator=random)
            about = [-6.24 + noise[0], -6.24 + noise[0] + noise[1] / 2, -6.24 + noise[2]]
            advantage = torch.randn((), generator=random).expand(len(ids) - 1)
            if row != 5:  # the fifth one is all padding
                answers.append(
                    (ids, is_trained, dict(zip(EXTRAS, (advantage, *about), strict=True)))
                )
            left -= len(ids) - 1
        rows.append(answers)
    return rows


def packed(rows):
    """The update's batch, as its loop makes it."""
    B = len(rows)
    tokens, labels = torch.zeros(2, B, LENGTH, dtype=torch.int64)
    weights, share = torch.zeros(2, B, LENGTH)
    valid = torch.zeros(B, LENGTH, dtype=torch.bool)
    extra = {name: torch.zeros(B, LENGTH) for name in EXTRAS}
    sequence, starts = torch.full((B, LENGTH), -1), []
    for row, answers in enumerate(rows):
        begins, end = [], 0
        for number, (ids, is_trained, values) in enumerate(answers):
            begins.append(end)
            here = slice(end, end := end + len(ids) - 1)
            tokens[row, here], labels[row, here], sequence[row, here] = ids[:-1], ids[1:], number
            weights[row, here] = is_trained.float()
            share[row, here] = 1 / is_trained.sum()
            for name, x in values.items():
                extra[name][row, here] = x
        valid[row, :end] = True
        starts.append([*begins, end])
    extra |= {"sequence": sequence, "share": share}
    return TokenBatch(tokens, labels, weights, Stretches.of(starts, LENGTH), valid, extra)


def config_of(variant, *settings):
    base = ["train.precision=fp32", "optim.eps=1e-6"]
    base += ["run.mode=rl", "train.steps=9", f"data.sequence_length={LENGTH}"]
    base += ["rollouts.max_new_tokens=20"]
    # The router's loss is of rows, which differ.
    base += ["optim.distributed=false", "optim.clip_grad=0.0", "model.router_aux_loss=0.0"]
    return of_an_update([*base, *COMMON, *VARIANTS[variant], *settings])


def updated(trained_rows, *settings):
    """Of each variant: metrics and gradients of the update; and the weights after one that moves.

    trained_rows: of all others no answer is trained.
    """
    rows = rows_of_answers()
    whole = packed(rows)
    is_left_out = torch.tensor([row not in trained_rows for row in range(ROWS)])
    whole = replace(whole, weights_BS=whole.weights_BS.masked_fill(is_left_out[:, None], 0.0))
    results, engine = {}, None
    for variant in VARIANTS:
        config = config_of(variant, *settings)
        engine = engine or Engine(config, start(config))
        count = ROWS // engine.layout.data
        mine = list(whole.split(count))[engine.data_rank]
        sequences = engine.model.sum_over_data(trained_answers(mine))
        objective = policy_objective(config, int(sequences))
        rate = RATE if variant == "cispo" else 0.0
        metrics = engine.train_step(mine, objective, rate)
        gradients = local_shards(engine.model.chunks, lambda p: getattr(p, "main_grad", None))
        results[variant] = metrics, gradients
    engine.model.synchronize()
    return results, local_shards(engine.model.chunks, lambda p: p)


def by_definition(trained_rows, *settings):
    """The same by autograd from formulas, each answer alone in a pass of its own."""
    results, passes = {}, []
    for variant in VARIANTS:
        config = config_of(variant, *settings)
        if not passes:
            (model,) = Model(config, start(config)).chunks
            answers = [answer for row in trained_rows for answer in rows_of_answers()[row]]
            passes = [(model(ids[None, :-1]).whole()[:, 0], (ids, *of)) for ids, *of in answers]
        tempered = [(x / config.rollouts.temperature, answer) for x, answer in passes]
        losses = [of_answer(variant, *x) for x in tempered]
        means = [torch.stack(x).sum() for x in zip(*shares(variant, losses), strict=True)]
        loss = sum(means)
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        named = dict(zip(map(id, model.parameters()), gradients, strict=True))
        names = ("policy_loss", "kl_loss", "entropy_loss")
        metrics = {"loss": loss.item(), **dict(zip(names, (x.item() for x in means), strict=True))}
        for name in ("entropy", "kl", "importance"):
            metrics[name] = torch.cat([x[name] for x in losses]).mean().item()
        results[variant] = metrics, local_shards([model], lambda p, named=named: named.get(id(p)))
    return results


def of_answer(variant, logits_SV, answer):
    """The losses of an answer's trained tokens, written out."""
    ids, is_trained, extra = answer
    log_p_SV = logits_SV.log_softmax(-1)
    entropy = -(log_p_SV.exp() * log_p_SV).sum(-1)[is_trained]
    lp = log_p_SV.gather(-1, ids[1:, None]).squeeze(-1)[is_trained]
    A, old, sampler, reference = (extra[name][is_trained] for name in EXTRAS)
    r = {
        "gspo": (lp - old).mean().exp().expand_as(lp),
        "rloo": (lp - old).sum().exp().expand_as(lp),
    }.get(variant, (lp - old).exp())
    high, dual = {"dapo": (0.28, 3.0), "rloo": (0.2, 1.25)}.get(variant, (0.2, 3.0))
    of_policy = torch.max(-A * r, -A * r.clip(0.8, 1 + high))
    of_policy = torch.where(A < 0, torch.min(of_policy, -A * dual), of_policy)
    if variant == "cispo":
        of_policy = -r.detach().clip(0.8, 1.2) * A * lp
    w = (old - sampler).exp()
    if variant == "rloo":
        w = (old - sampler).sum().exp().expand_as(lp)
    w = torch.where((w < 0.5) | (w > 2), 0.0, w) if variant in ("rloo", "cispo") else w.clip(max=2)
    d = reference - lp
    of_kl = d.square() / 2 if variant == "gspo" else d.exp() - 1 - d
    weighed = of_kl * (r if variant == "cispo" else 1)
    losses = {"policy": w * of_policy, "kl_loss": weighed}
    return losses | {"kl": of_kl, "entropy": entropy, "importance": w}


def shares(variant, answers):
    """(policy, KL, entropy) of each answer, such that the loss is their sum over all answers."""
    tokens = sum(len(x["kl"]) for x in answers)
    for x in answers:
        share = {
            "dapo": 1 / tokens,
            "gspo": 1 / len(x["kl"]) / len(answers),
            "rloo": 1 / len(answers),
            "cispo": 1 / len(answers) / 20,
        }[variant]
        of_tokens = (share * x["policy"].sum(), 0.1 * share * x["kl_loss"].sum())
        yield *of_tokens, -0.01 * x["entropy"].sum() / tokens


ALL = tuple(range(ROWS))


@functools.cache
def expected(model, trained_rows=ALL):
    return run_ranks(by_definition, 1, trained_rows, *MODELS[model])[0]


@functools.cache
def weights(model, trained_rows=ALL):
    """After the updates on one rank, whose gradients are those of the definition."""
    return run_ranks(updated, 1, trained_rows, *MODELS[model], "train.micro_batch=4")[0][1]


def assert_same(results_of_ranks, model, trained_rows=ALL):
    for variant, (metrics, gradients) in expected(model, trained_rows).items():
        told = [results[variant] for results, _ in results_of_ranks]
        for found, _ in told:
            assert found == told[0][0], "ranks report different metrics"
            for name, value in metrics.items():
                assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-7), (variant, name)
        near([shards for _, shards in told], gradients, variant)
    near([shards for _, shards in results_of_ranks], weights(model, trained_rows), "weights")


def near(shards_of_ranks, expected_shards, what):
    relative, name = difference(assemble(shards_of_ranks), assemble([expected_shards]))
    assert relative < 1e-5, f"{what}: {name} is off by {relative:.1e} of its norm"


QUICK = (
    "dense-cp2",
    "dense-pp2",
    "dense-dp2",
    "dense-untied-tp2-pp2",
    "moe-ep2",
    "moe-tp2-ep2",
)
LAYOUTS = [
    case
    for case in (*CASES, *SLOW_CASES)
    if case.ranks <= 4 and "8" not in case.model and "dca" not in case.model
]


@cases(
    [case for case in LAYOUTS if f"{case.model}-{case.name}" in QUICK],
    [case for case in LAYOUTS if f"{case.model}-{case.name}" not in QUICK],
)
def test_an_update_of_packed_answers_is_that_of_each_alone_in_every_layout(case):
    assert_same(run_ranks(updated, case.ranks, ALL, *case.settings), case.model)


@pytest.mark.parametrize("micro_batch", [1, 8])
def test_eight_rows_at_once_are_as_eight_times_one(micro_batch):
    settings = (*MODELS["dense"], f"train.micro_batch={micro_batch}")
    assert_same(run_ranks(updated, 1, ALL, *settings), "dense")


@pytest.mark.parametrize("model", ["dense", pytest.param("moe", marks=pytest.mark.slow)])
def test_a_rank_whose_rows_have_no_trained_token_changes_nothing(model):
    """Its gradients are 0, not NaN, and its rows count in no mean."""
    half = tuple(range(ROWS // 2))
    results = run_ranks(updated, 2, half, *MODELS[model], "train.micro_batch=2")
    assert_same(results, model, half)


def scored_and_updated(*settings):
    """How far the first update's log-probs are from those of the pass before it, and metrics."""
    config = config_of("dapo", *settings)
    engine = Engine(config, start(config))
    mine = list(packed(rows_of_answers()).split(ROWS // engine.layout.data))[engine.data_rank]
    head = log_probs_and_entropy(config.rollouts.temperature)
    before = engine.model.score(mine, head)["log_prob"]
    again = engine.model.score(mine, head)["log_prob"]
    names = ("old_log_prob", "sampler_log_prob", "reference_log_prob")
    mine = replace(mine, extra={**mine.extra, **dict.fromkeys(names, before)})
    sequences = engine.model.sum_over_data(trained_answers(mine))
    metrics = engine.train_step(mine, policy_objective(config, int(sequences)), 0.0)
    return metrics, torch.equal(before, again)


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (1, ("model.preset=tiny-dense",)),
        (1, ("model.preset=tiny-moe", "train.micro_batch=4")),
        (2, ("model.preset=tiny-moe", "parallel.tensor=2", "parallel.expert=2")),
        (2, ("model.preset=tiny-dense", "parallel.pipeline=2", "train.micro_batch=2")),
    ],
)
def test_the_first_update_begins_at_ratio_1_and_no_divergence_from_itself(ranks, settings):
    for metrics, is_repeated in run_ranks(scored_and_updated, ranks, *settings):
        assert is_repeated
        assert metrics["ratio"] == pytest.approx(1, abs=1e-6)
        for name in ("kl", "policy_change", "mismatch_kl"):
            assert abs(metrics[name]) < 1e-8, name
        assert metrics["mismatch"] == metrics["clip_share"] == 0
