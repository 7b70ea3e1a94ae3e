"""Generation says the same in every layout, and training goes on as if there had been none.

Every case generates greedily, by sampling, and two samples of each prompt up to a limit of its own,
with prompts of different lengths, rows that stop early and thinking that is cut, on weights that do
not depend on the layout.
"""

import functools
from dataclasses import dataclass

import pytest
import torch
from ranks import run_ranks
from shards import local_shards

from megatron_qwen3.config import load
from megatron_qwen3.generate.engine import Generator
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.model.router import Router
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.objectives import cross_entropy

VOCABULARY, NEW = 512, 24
OPENS, CLOSES, CUT = 500, 501, (490, 491, 501)
LENGTHS = (4, 9, 1, 6, 13)
LIMITS = (7, 2, 12, 0, 9)  # of each prompt, where each has two samples
STOPS = tuple(range(0, VOCABULARY, 20))  # one token in twenty: rows end at different times
SAMPLED = Sampling(temperature=0.8, top_k=40, top_p=0.95, presence_penalty=0.5, seed=3)
GREEDY = Sampling(temperature=0, repetition_penalty=1.2)


@dataclass(frozen=True)
class Case:
    """A layout; `shares`: prompts of each data rank."""

    name: str
    ranks: int
    parallel: str
    shares: tuple[int, ...] = (5,)
    preset: str = "tiny-moe"


CASES = (
    Case("tp2", 2, "tensor=2", preset="tiny-dense"),
    Case("pp2", 2, "pipeline=2", preset="tiny-dense"),
    Case("tp2", 2, "tensor=2"),
    Case("pp2-vpp2", 2, "pipeline=2 virtual_pipeline=2"),
    Case("ep2", 2, "expert=2", (2, 3)),
    Case("ep2-one-without-prompts", 2, "expert=2", (5, 0)),
    Case("tp2-ep2", 2, "tensor=2 expert=2"),
    Case("tp2-pp2-ep2", 4, "tensor=2 pipeline=2 expert=2"),
    Case("etp2", 2, "tensor=2 expert_tensor=2"),
)
SLOW_CASES = (
    Case("dp2", 2, "", (4, 1), "tiny-dense"),
    Case("pp2-vpp2", 2, "pipeline=2 virtual_pipeline=2", preset="tiny-dense"),
    Case("tp2-pp2", 4, "tensor=2 pipeline=2", preset="tiny-dense"),
    Case("pp2", 2, "pipeline=2"),
    # In some steps no token goes to the experts of a rank.
    Case("etp2-ep2", 4, "tensor=2 expert=2 expert_tensor=2", (3, 2)),
    Case("tp2-pp2-ep4", 8, "tensor=2 pipeline=2 expert=4", (1, 4)),
    Case("tp2-ep2-dp2", 4, "tensor=2 expert=2", (3, 2)),
)


def settings(preset, parallel, *more):
    return load(
        [],
        [
            f"model.preset={preset}",
            "model.init_std=0.15",  # so that tokens differ clearly in their logits
            "train.steps=9",
            "train.precision=fp32",
            "train.global_batch=4",
            "train.micro_batch=1",
            "data.sequence_length=32",
            *(f"parallel.{setting}" for setting in parallel.split()),
            *more,
        ],
    )


def prompts():
    random = torch.Generator().manual_seed(5)
    rows = [torch.randint(480, (n,), generator=random).tolist() for n in LENGTHS]
    rows[1][-5] = OPENS
    rows[3][0] = OPENS
    return rows


def generated(preset, parallel, shares, *more):
    """This rank's data rank and its completions."""
    config = settings(preset, parallel, *more)
    layout = start(config)
    return completed(Model(config, layout), layout, shares)


def completed(model, layout, shares):
    generator = Generator(model)
    data_rank = torch.distributed.get_rank() // layout.tensor % layout.data
    first = sum(shares[:data_rank])
    mine = prompts()[first : first + shares[data_rank]]
    limits = LIMITS[first : first + shares[data_rank]]
    budget = ThinkingBudget(6, OPENS, CLOSES, CUT)
    generate = functools.partial(generator.generate, mine, stop_ids=STOPS, budget=budget)
    return data_rank, [
        generate(GREEDY, NEW, first_row=first),
        generate(SAMPLED, NEW, first_row=first),
        generate(SAMPLED, limits, first_row=2 * first, samples=2),
    ]


@functools.cache
def on_one_rank(preset):
    return run_ranks(generated, 1, preset, "", (len(LENGTHS),))[0][1]


def generated_by_half_of_the_experts(parallel, shares):
    """Completions as `generated` has them, and how often this rank chose each expert.

    The first four experts' rows of a router are two and their opposites, and the others' are 0: of
    each pair one has a logit above 0, so that no token ever goes to the last four.
    """
    config = settings("tiny-moe", parallel)
    layout = start(config)
    model, chosen_E = Model(config, layout), torch.zeros(8, dtype=torch.int64)
    for layer in model.chunks[0].decoder.layers:
        weight_EH = layer.mlp.router.weight.data
        weight_EH[2:4] = -weight_EH[:2]
        weight_EH[4:] = 0
    forward = Router.forward

    def counted(self, *given):
        probs_TK, experts_TK = forward(self, *given)
        chosen_E.add_(experts_TK.flatten().bincount(minlength=8))
        return probs_TK, experts_TK

    Router.forward = counted
    return *completed(model, layout, shares), chosen_E.tolist()


def test_an_expert_rank_that_nobody_chooses_and_prompts_of_one_rank_change_nothing():
    ((_, expected, _),) = run_ranks(generated_by_half_of_the_experts, 1, "", (5,))
    case = Case("ep2", 2, "expert=2", (4, 1))
    ranks = run_ranks(generated_by_half_of_the_experts, 2, case.parallel, case.shares)
    assert_same(case, [rank[:2] for rank in ranks], expected)
    for *_, chosen_E in ranks:
        assert all(chosen_E[:4]) and chosen_E[4:] == [0] * 4


def check(case):
    assert_same(case, run_ranks(generated, case.ranks, case.preset, case.parallel, case.shares))


def assert_same(case, results, expected_modes=None):
    by_data_rank = {}
    for data_rank, completions in results:
        # A rank's memory does not depend on its place in the model.
        assert by_data_rank.setdefault(data_rank, completions) == completions
    assert len(by_data_rank) == len(case.shares)
    for mode, expected in enumerate(expected_modes or on_one_rank(case.preset)):
        together = [c for rank in range(len(case.shares)) for c in by_data_rank[rank][mode]]
        assert [c.tokens for c in together] == [c.tokens for c in expected]
        for ours, theirs in zip(together, expected, strict=True):
            assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-5)
            sampled = pytest.approx(theirs.sampled_log_probs, abs=1e-5)
            assert ours.sampled_log_probs == sampled
            assert ours.inserted == theirs.inserted
            assert ours.finish_reason == theirs.finish_reason


def names(cases):
    return [f"{case.preset}-{case.name}" for case in cases]


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_generation_does_not_depend_on_layout(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_CASES, ids=names(SLOW_CASES))
def test_generation_does_not_depend_on_layout_in_further_ones(case):
    check(case)


@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_cases_stop_early_run_out_and_have_thinking_cut(preset):
    *plain, _ = on_one_rank(preset)
    both = [c for mode in plain for c in mode]
    assert {c.finish_reason for c in both} == {"stop", "length"}
    assert any(0 < len(c.tokens) < NEW // 2 for c in both)
    for completions in plain:
        # Of a budget of six, the prompts of rows 1 and 3 have spent four and five.
        for row, more in ((1, 2), (3, 1)):
            cut = completions[row]
            assert cut.tokens[more : more + len(CUT)] == list(CUT)
            assert [k for k, i in enumerate(cut.inserted) if i] == [more, more + 1, more + 2]
        assert [k for k, row in enumerate(completions) if any(row.inserted)] == [1, 3]


def trained_twice(preset, parallel):
    """`trained` without generation, and with it."""
    config = settings(preset, parallel)
    layout = start(config)
    return [trained(config, layout, with_generation) for with_generation in (False, True)]


def trained(config, layout, with_generation):
    """Metrics of three steps, the weights after them, and how far scores are apart."""
    engine = Engine(config, layout)
    generator = Generator(engine.model)
    metrics, apart = [], []
    for step in range(3):
        random = torch.Generator().manual_seed(step)
        ids = torch.randint(VOCABULARY, (4, 33), generator=random)
        mine = ids.view(layout.data, -1, 33)[engine.data_rank]
        metrics.append(engine.train_step(TokenBatch.of(mine[:, :-1], mine[:, 1:]), *_LOSS))
        if with_generation:
            engine.model.synchronize()
            completions = generator.generate(mine[:, :20].tolist(), SAMPLED, 13)
            apart.append(_score_apart(engine, mine[:, :20], completions))
    engine.model.synchronize()
    return metrics, local_shards(engine.model.chunks, lambda t: t), apart


_LOSS = (cross_entropy, 1e-3)


def _score_apart(engine, prompts_BS, completions):
    """The largest difference between the log-probabilities and a fresh pass."""
    rows = torch.cat([prompts_BS, torch.tensor([c.tokens for c in completions])], dim=1)
    fresh = engine.model.score(TokenBatch.of(rows[:, :-1], rows[:, 1:]), log_probs)["log_prob"][
        :, prompts_BS.shape[1] - 1 :
    ]
    return (fresh - torch.tensor([c.log_probs for c in completions])).abs().max().item()


@pytest.mark.parametrize(
    ("preset", "ranks", "parallel"),
    [
        ("tiny-dense", 2, ""),
        ("tiny-moe", 2, "tensor=2 expert=2"),
        pytest.param(*("tiny-moe", 2, "pipeline=2 virtual_pipeline=2"), marks=pytest.mark.slow),
    ],
    ids=["dense-dp2", "moe-tp2-ep2", "moe-pp2-vpp2"],
)
def test_training_goes_on_after_generation_as_without_it(preset, ranks, parallel):
    for without, after in run_ranks(trained_twice, ranks, preset, parallel):
        (expected, expected_shards, _), (metrics, shards, apart) = without, after
        assert metrics == expected
        for ours, theirs in zip(shards, expected_shards, strict=True):
            assert ours[:3] == theirs[:3]
            assert torch.equal(ours[3], theirs[3]), ours[0]
        assert len(apart) == 3 and max(apart) <= 1e-5
