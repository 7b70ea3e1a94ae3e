"""Rollouts as rows: every token once with its numbers, equally many rows for all ranks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_rollout_record import made, rollout

from megatron_qwen3.config import load
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.posttrain import rl
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord, TaskName
from megatron_qwen3.posttrain.rollouts.rows import RolloutRows


def many(groups=9, samples=3, seed=0):
    """Rollouts of random lengths, of which some have forced tokens and some are not trained."""
    luck = np.random.default_rng(seed)
    names = [TaskName(f"t{g}", "s", "thinking") for g in range(groups)]
    made_groups = [
        [rollout(f"t{g}", int(luck.integers(1, 20)), forced=(1, 2)) for _ in range(samples)]
        for g in range(groups)
    ]
    count = groups * samples
    columns = records.of_groups(made_groups, names)
    columns["ids"] = luck.integers(0, 1000, len(columns["ids"])).astype(np.int32)
    columns["log_probs"] = luck.normal(size=len(columns["log_probs"])).astype(np.float32)
    return RolloutRecord(
        batch=0,
        first_step=0,
        sampled_step=0,
        parts=(),
        **columns,
        reward_N=np.zeros(count, np.float32),
        advantage_N=luck.normal(size=count).astype(np.float32),
        parts_NP=np.zeros((count, 0), np.float32),
        is_trained_N=luck.random(count) < 0.8,
    )


@pytest.mark.parametrize(("ranks", "micro_batch", "unit"), [(1, 1, 1), (2, 2, 4), (3, 1, 8)])
@pytest.mark.parametrize("length", [32, 64, 640])
def test_every_token_stands_once_with_what_is_said_of_it(ranks, micro_batch, unit, length):
    record = many()
    (share,) = record.updates(1, seed=3)
    rows = RolloutRows.of(record, share, length, ranks, micro_batch, unit)
    batches = [
        rows.batch(d, {"advantage": record.advantage_N}, {"sampler": record.log_probs})
        for d in range(ranks)
    ]
    assert len({(b.rows, b.length) for b in batches}) == 1
    assert batches[0].rows % micro_batch == 0 and batches[0].length % unit == 0
    assert batches[0].length <= length
    assert sorted(rows.rollouts) == sorted(share) == sorted(np.flatnonzero(record.is_trained_N))
    found = {}
    for d, batch in enumerate(batches):
        for r, row in enumerate(rows.of_rank(d)):
            end = 0
            for k, n in enumerate(row):
                prompt, tokens = record.prompt(n), record.tokens(n)
                begin, end = end, end + len(prompt) + len(tokens) - 1
                ids = np.concatenate([prompt, tokens])
                assert batch.tokens_BS[r, begin:end].tolist() == ids[:-1].tolist()
                assert batch.labels_BS[r, begin:end].tolist() == ids[1:].tolist()
                answer = slice(begin + len(prompt) - 1, end)
                places = record.places(n)
                weights = batch.weights_BS[r, answer]
                assert weights.tolist() == record.sampled[places].tolist()
                assert not batch.weights_BS[r, begin : answer.start].any()
                extra = {name: x[r, answer] for name, x in batch.extra.items()}
                assert (extra["sequence"] == k).all()
                assert (extra["advantage"] == record.advantage_N[n].item()).all()
                assert extra["sampler"].tolist() == record.log_probs[places].tolist()
                assert (extra["share"] * weights).sum().item() == pytest.approx(1)
                assert batch.valid_BS[r, begin:end].all()
                found[n] = (d, r, begin)
            assert not batch.valid_BS[r, end:].any() and not batch.weights_BS[r, end:].any()
            assert (batch.extra["sequence"][r, end:] == -1).all()
    assert len(found) == len(share)
    assert sum(float(b.weights_BS.sum()) for b in batches) == record.trained_tokens_N.sum()


def test_what_positions_say_goes_back_to_the_tokens():
    record = many()
    (share,) = record.updates(1, seed=3)
    rows = RolloutRows.of(record, share, 64, ranks=2)
    parts = [rows.batch(d, {}, {"x": record.log_probs}).extra["x"].numpy() for d in range(2)]
    into_T = np.zeros_like(record.log_probs)
    rows.spread(np.concatenate(parts), into_T)
    is_own_T = np.isin(np.repeat(np.arange(len(record)), record.lengths_N), share)
    assert (into_T == np.where(is_own_T, record.log_probs, 0)).all()


def test_stretches_keep_rollouts_apart():
    record = many()
    rows = RolloutRows.of(record, list(range(len(record))), 64, ranks=1)
    batch = rows.batch(0, {}, {})
    starts = {divmod(bound, batch.length) for bound in batch.stretches.bounds[:-1]}
    for r, row in enumerate(rows.members):
        end = 0
        for n in row:
            assert (r, end) in starts
            end += int(record.prompt_lengths_N[n] + record.lengths_N[n]) - 1


def test_rows_are_no_longer_than_ranks_need():
    """Rollouts that one row would hold are shared by all ranks, in rows that are about full."""
    record = many(groups=20, samples=8)
    rows = RolloutRows.of(record, list(range(160)), 8192, ranks=8)
    places = (record.lengths_N + record.prompt_lengths_N - 1).sum()
    assert len(rows.members) == 8 and places / (8 * rows.length) > 0.9


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_updates_have_whole_groups_each_once(count):
    record = many()
    shares = record.updates(count, seed=3)
    assert (
        sorted(n for share in shares for n in share) == np.flatnonzero(record.is_trained_N).tolist()
    )
    groups = [set(record.group_N[share].tolist()) for share in shares]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert record.updates(count, seed=4) != shares or count == 1


def test_of_fewer_groups_than_updates_some_updates_have_none():
    record = made()
    assert sorted(record.updates(3, seed=0)) == [[], [0], [3]]


def test_a_rollout_that_no_row_holds_is_refused():
    record = many()
    with pytest.raises(ValueError, match="valid: 1 to 8"):
        RolloutRows.of(record, list(range(len(record))), 8, ranks=1)


def test_a_rank_may_have_rows_without_rollouts():
    record = made()
    rows = RolloutRows.of(record, [0, 3], 64, ranks=4)
    batches = [rows.batch(d, {}, {}) for d in range(4)]
    assert [bool(b.weights_BS.any()) for b in batches] == [True, True, False, False]
    assert not torch.stack([b.valid_BS for b in batches[2:]]).any()


SERVED = ("rollouts.engine=vllm", "rollouts.vllm.urls=['http://node1:8000']")


@pytest.mark.parametrize(
    ("settings", "ranks", "unit"),
    [
        (("parallel.context=3", *SERVED), 3, 6),
        (("parallel.tensor=2", "parallel.context=2", *SERVED), 4, 4),
        (("parallel.tensor=2",), 2, 2),
    ],
)
def test_rows_are_such_that_all_ranks_that_share_them_can(settings, ranks, unit):
    base = ["model.preset=tiny-dense", "run.mode=rl", "train.steps=1", "data.sequence_length=48"]
    base += ["rollouts.tasks=[{name='a', path='gym:chain_sum'}]", "rollouts.max_new_tokens=16"]
    config = load([], [*base, *settings])
    run = SimpleNamespace(config=config, engine=SimpleNamespace(layout=Layout.of(config, ranks)))
    shares = [[0], [1], [2], [0, 1], [4, 5, 6]]
    lengths = {rows.length for rows in rl.rows_of(run, many(), shares)}
    assert len(lengths) > 1 and not [length for length in lengths if length % unit]
