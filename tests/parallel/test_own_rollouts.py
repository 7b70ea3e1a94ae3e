"""Rollouts by the weights in training: in every layout the same, with a fresh pass's log-probs."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from ranks import run_ranks

from megatron_qwen3.chat import THINK
from megatron_qwen3.convert.stream import from_hf
from megatron_qwen3.generate.load import ModelSource, load, stop_ids, tokenizer_of
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.model.distributions import log_probs_and_entropy
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.rollouts.engines import open_engine
from megatron_qwen3.posttrain.rollouts.own import OwnEngine
from megatron_qwen3.posttrain.rollouts.rollout import Ask
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.stop import StopAsked

TEMPERATURE = 0.7
BUDGET = 3


@pytest.fixture(scope="module", params=["dense", "moe"])
def checkpoint(request, tmp_path_factory):
    home = tmp_path_factory.mktemp("model")
    tiny.save(home / "hf", tiny.SPARSE if request.param == "moe" else None)
    from_hf(home / "hf", home / "checkpoint")
    return request.param, str(home / "checkpoint")


def asks(think):
    """Five tasks of several lengths, limits and budgets; one of other samples. think: the tag."""
    limits = (9, 5, 12, 9, 7)
    return [
        Ask(
            f"task {n}",
            (*range(20 + n, 24 + 3 * n), *([think] if n % 2 else [])),
            seed=100 + n,
            samples=1 if n == 4 else 3,
            max_new_tokens=limits[n],
            thinking=bool(n % 2),
            thinking_budget=BUDGET if n == 3 else 0,
        )
        for n in range(5)
    ]


def sample(checkpoint, rows, settings, order=(0, 1, 2, 3, 4)):
    """The groups of all asks, and the score of each sampled token."""
    source = ModelSource(Path(checkpoint))
    config = source.config(list(settings), int(os.environ["WORLD_SIZE"]))
    tokenizer = tokenizer_of(config)
    model = load(source, config, start(config))
    beats = []
    engine = OwnEngine(
        model,
        stop_ids(source, config, tokenizer),
        TEMPERATURE,
        rows,
        lambda tokens: ThinkingBudget.of(tokenizer, tokens),
        lambda: beats.append(None),
    )
    engine.refit(7)
    asked = asks(tokenizer.token_to_id(THINK))
    groups = engine.sample([asked[n] for n in order])
    assert beats
    return groups, scores(model, groups)


def scores(model, groups):
    """log p of every token of every rollout, by a fresh pass of each on its own rank."""
    rollouts = [r for group in groups for r in group]
    length = -(-max(len(r.prompt) + len(r.tokens) for r in rollouts) // 8) * 8
    ids = np.zeros((len(rollouts), length + 1), np.int64)
    for row, r in zip(ids, rollouts, strict=True):
        row[: len(r.prompt) + len(r.tokens)] = (*r.prompt, *r.tokens)
    batch = TokenBatch.of(torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:]))
    scored = model.score(batch, log_probs_and_entropy(TEMPERATURE))["log_prob"].cpu().numpy()
    return [
        row[len(r.prompt) - 1 : len(r.prompt) - 1 + len(r.tokens)].tolist()
        for row, r in zip(scored, rollouts, strict=True)
    ]


@pytest.fixture(scope="module")
def on_one_rank(checkpoint):
    return run_ranks(sample, 1, checkpoint[1], 64, ())[0]


def plain(groups):
    """The parts that do not depend on rounding: ids, marks and ends."""
    names = ("task", "prompt", "tokens", "sampled", "finish", "versions", "thinking", "seed")
    return [[tuple(getattr(r, name) for name in names) for r in group] for group in groups]


def test_log_probs_are_those_of_a_fresh_pass_at_the_sampling_temperature(on_one_rank):
    groups, scored = on_one_rank
    rollouts = [r for group in groups for r in group]
    assert [len(group) for group in groups] == [3, 3, 3, 3, 1]
    for rollout, expected in zip(rollouts, scored, strict=True):
        is_forced = ~np.array(rollout.sampled)
        log_probs = np.array(rollout.log_probs)
        assert np.abs(log_probs - expected)[~is_forced].max() < 1e-5
        assert (log_probs[is_forced] == 0).all()
        assert rollout.versions == (7, 7)
        limit = {f"task {n}": a.max_new_tokens for n, a in enumerate(asks(0))}[rollout.task]
        assert rollout.finish == "stop" or len(rollout.tokens) == limit
    assert len({r.tokens for r in rollouts}) > 10  # each sample draws for itself


def test_a_thinking_budget_forces_tokens_that_are_marked(on_one_rank):
    groups, _ = on_one_rank
    for group in groups[:3]:
        assert all(all(r.sampled) for r in group)
    forced = [r for r in groups[3] if not all(r.sampled)]
    assert forced and all(not any(r.sampled[BUDGET:]) for r in forced)


@pytest.mark.parametrize(
    ("ranks", "rows", "settings"),
    [
        (1, 2, ()),
        (2, 3, ()),
        (2, 64, ("parallel.tensor=2",)),
        (2, 4, ("parallel.pipeline=2",)),
        (2, 3, ("parallel.expert=2",)),
    ],
)
def test_a_rollout_depends_on_its_own_seed_in_every_layout(
    checkpoint, on_one_rank, ranks, rows, settings
):
    kind, path = checkpoint
    if "parallel.expert=2" in settings and kind == "dense":
        pytest.skip("no experts")
    order = (4, 2, 0, 1, 3)
    found = run_ranks(sample, ranks, path, rows, settings, order)
    for groups, scored in found:
        assert plain(groups) == [plain(on_one_rank[0])[n] for n in order]
        pairs = zip([r for group in groups for r in group], scored, strict=True)
        for rollout, expected in pairs:
            gap = np.abs(np.array(rollout.log_probs) - expected)[np.array(rollout.sampled)]
            assert gap.max(initial=0) < 1e-5


def signs_of_life(checkpoint, settings, limits, stop_at=0):
    """(signs of all ranks alike, of this one, whether a stop ended it, tokens) while ask n has
    limits[n] tokens; the one numbered `stop_at` raises."""
    source = ModelSource(Path(checkpoint))
    config = source.config(list(settings), int(os.environ["WORLD_SIZE"]))
    model = load(source, config, start(config))
    alike, own = [], []

    def beat():
        alike.append(None)
        if len(alike) == stop_at:
            raise StopAsked("now")

    engine = OwnEngine(model, (), TEMPERATURE, 64, None, beat, lambda: own.append(None))
    asked = [Ask(f"{n}", (20 + n,), n, 1, limit, False) for n, limit in enumerate(limits)]
    try:
        made = [len(rollout.tokens) for (rollout,) in engine.sample(asked)]
    except StopAsked:
        return len(alike), len(own), True, []
    return len(alike), len(own), False, made


@pytest.mark.parametrize(
    "settings",
    [
        (),
        pytest.param(("parallel.tensor=2",), marks=pytest.mark.slow),
        ("parallel.pipeline=2",),
    ],
)
def test_a_long_pass_gives_signs_of_life_on_ranks_that_have_nothing_left_to_sample(
    checkpoint, settings
):
    """Of two data ranks one is done after two tokens, and the other after two hundred."""
    ranks = 4 if settings else 2
    found = run_ranks(signs_of_life, ranks, checkpoint[1], settings, (2, 200))
    assert {made for *_, made in ((*x[:3], tuple(x[3])) for x in found)} == {(2, 200)}
    alike = {x[0] for x in found}
    assert len(alike) == 1 and alike.pop() >= 200 // 32 + 2
    assert max(x[1] for x in found) >= 200


def test_a_stop_is_heard_in_the_middle_of_a_long_pass(checkpoint):
    found = run_ranks(signs_of_life, 2, checkpoint[1], (), (2, 200), 3)
    assert [x[0] for x in found] == [3, 3] and all(x[2] for x in found)
    assert max(x[1] for x in found) < 100


def sampled_by_a_run(path, judge):
    """Each rank's share of the samples of a run's engine; judge: a reward model, "" for none."""
    source = ModelSource(Path(path))
    config = source.config([], int(os.environ["WORLD_SIZE"]))
    config = replace(config, rl=replace(config.rl, judge=replace(config.rl.judge, model=judge)))
    tokenizer = tokenizer_of(config)
    model = load(source, config, start(config))
    with open_engine(config, model, tokenizer, lambda: None) as engine:
        return plain(engine.sample(asks(tokenizer.token_to_id(THINK))))


@pytest.mark.parametrize("judge", ["", "models/judge"])
def test_the_first_rank_alone_gets_rollouts_unless_a_reward_model_reads_them_on_all(
    checkpoint, judge
):
    first, second = run_ranks(sampled_by_a_run, 2, checkpoint[1], judge)
    assert [len(group) for group in first] == [3, 3, 3, 3, 1]
    assert second == (first if judge else [])
