"""Rows of pairs: both answers of each in one row, apart, and rewards read where answers end."""

import numpy as np
import pytest
import torch
from dialog_sets import write_set

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.posttrain.rows.bradley_terry import over_pairs
from megatron_qwen3.posttrain.rows.dialog_mixture import held_out
from megatron_qwen3.posttrain.rows.packing import PackedPlace
from megatron_qwen3.posttrain.rows.pair_mixture import PairMixture, Pairs
from megatron_qwen3.posttrain.rows.pair_rows import MARGIN, REJECTED, arrays_of
from megatron_qwen3.training.batch import TokenBatch

LENGTH = 32
END, NEWLINE = 90, 91  # of each answer, as the format has them


def answer(first, length):
    """Ids that end as a turn does; the end is marked, the newline after it is not."""
    ids = [*range(first, first + length - 2), END, NEWLINE]
    return ids, [False] * (length - 2) + [True, False]


@pytest.fixture
def dialogs(tmp_path):
    lengths = [(5, 7), (4, 4), (20, 13), (10, 6), (3, 9)]
    samples = [answer(10 * n, size) for n, sizes in enumerate(lengths) for size in sizes]
    margins = np.repeat([0.0, 0.5, 0.0, 1.5, 2.0], 2)
    weights = np.repeat([1.0, 2.0, 1.0, 0.5, 1.0], 2)
    return write_set(tmp_path / "pairs", samples, kind="pairs", margin=margins, weight=weights)


def mixture_of(dialogs, *more):
    source = f'[{{name = "web", path = "{dialogs.prefix}"}}]'
    settings = ["run.mode=reward", "model.preset=tiny-dense", f"reward.sources={source}"]
    settings += [f"data.sequence_length={LENGTH}", "reward.held_out=0.0", "train.steps=2"]
    return PairMixture(load([], [*settings, *more]))


def batch(dialogs, margin=True):
    rows = [[PackedPlace(0, 0), PackedPlace(0, 3)], [PackedPlace(0, 1)]]
    return TokenBatch.of_arrays(arrays_of(rows, mixture_of(dialogs), LENGTH, margin))


def test_both_answers_of_a_pair_lie_in_one_row_as_documents_of_their_own(dialogs):
    rows = batch(dialogs)
    assert rows.stretches.bounds == (0, 5, 12, 22, 28, 32, 36, 40, 64)
    assert rows.valid_BS.sum(1).tolist() == [28, 8]
    for n, (row, start) in enumerate([(0, 0), (0, 5), (1, 0), (1, 4)]):
        ids = dialogs.read(n).ids
        assert rows.tokens_BS[row, start : start + len(ids)].tolist() == ids.tolist()


def test_rewards_are_read_at_the_token_that_ends_an_answer_never_at_padding(dialogs):
    rows = batch(dialogs)
    assert rows.weights_BS.nonzero().tolist() == [[0, 3], [0, 20], [1, 2]]
    assert rows.weights_BS[rows.weights_BS > 0].tolist() == [1.0, 0.5, 2.0]
    for row, chosen in rows.weights_BS.nonzero().tolist():
        rejected = int(rows.extra[REJECTED][row, chosen])
        assert rows.tokens_BS[row, chosen] == rows.tokens_BS[row, rejected] == END
        assert rejected > chosen
    assert rows.extra[MARGIN][rows.weights_BS > 0].tolist() == [0.0, 1.5, 0.5]
    assert not batch(dialogs, margin=False).extra[MARGIN].any()


def test_the_objectives_means_are_of_pairs_by_their_weights(dialogs):
    rows = batch(dialogs)
    reward_BS = torch.randn(2, LENGTH, generator=torch.Generator().manual_seed(1))
    objective = over_pairs(centering=0.1)
    values = objective.values({"scalar": reward_BS}, rows)
    found = {
        name: (values[name] * mean.weights(rows)).sum() / mean.weights(rows).sum()
        for name, mean in objective.means.items()
    }
    pairs = [(0, 3, 10, 0.0, 1.0), (0, 20, 26, 1.5, 0.5), (1, 2, 6, 0.5, 2.0)]
    total = {"bradley_terry": 0.0, "centering": 0.0, "accuracy": 0.0, "reward_margin": 0.0}
    for row, chosen, rejected, margin, weight in pairs:
        c, r = reward_BS[row, chosen].double(), reward_BS[row, rejected].double()
        total["bradley_terry"] += weight * (1 + (r + margin - c).exp()).log().item() / 3.5
        total["centering"] += weight * 0.1 * (c + r).item() ** 2 / 3.5
        total["accuracy"] += weight * (c > r).item() / 3.5
        total["reward_margin"] += weight * (c - r).item() / 3.5
    assert {name: x.item() for name, x in found.items()} == pytest.approx(total, rel=1e-5)
    assert set(objective.losses) == {"bradley_terry", "centering"}
    assert set(over_pairs().losses) == {"bradley_terry"}


def test_pairs_that_do_not_fit_are_left_out_and_counted(dialogs):
    pairs = Pairs(dialogs, "web", LENGTH, fraction=0.0)
    assert (pairs.trained_M.tolist(), pairs.too_long) == ([0, 1, 3, 4], 1)
    with pytest.raises(ConfigError, match="none of the others fits into .* = 7, which"):
        Pairs(dialogs, "web", 7, fraction=0.0)


def test_what_is_held_out_is_not_trained(dialogs):
    pairs = Pairs(dialogs, "web", 64, fraction=0.4)
    assert pairs.held_out_M.tolist() == np.flatnonzero(held_out(dialogs, 0.4)[::2]).tolist()
    assert 0 < len(pairs.held_out_M) < 5
    assert sorted([*pairs.trained_M, *pairs.held_out_M]) == [0, 1, 2, 3, 4]


def test_a_set_of_dialogs_is_refused(tmp_path):
    dialogs = write_set(tmp_path / "dialogs", [answer(1, 5)])
    with pytest.raises(ConfigError, match="holds dialogs; valid: pairs"):
        Pairs(dialogs, "web", LENGTH, 0.0)


def test_a_batch_of_pairs_is_one_that_the_engine_splits_and_pads(dialogs):
    rows = batch(dialogs)
    assert isinstance(rows.stretches, Stretches)
    padded = rows.padded_to(3)
    assert isinstance(padded, TokenBatch) and padded.weights_BS[2].sum() == 0
    over_pairs().check(rows)


def test_every_pair_is_drawn_once_before_any_is_drawn_again_and_held_out_ones_never(dialogs):
    mixture = mixture_of(dialogs, "data.sequence_length=64", "reward.held_out=0.4")
    (pairs,) = mixture.sources
    size = len(pairs.trained_M)
    assert 0 < size < 5
    seen = [place.sample for row in mixture.rows(0, 12) for place in row]
    for epoch in range(3):
        assert sorted(seen[size * epoch : size * (epoch + 1)]) == pairs.trained_M.tolist()
    left_out = [place.sample for row in mixture.held_out(10**6) for place in row]
    assert sorted(left_out) == pairs.held_out_M.tolist()
    assert len([place for row in mixture.held_out(1) for place in row]) == 1


def test_rows_change_with_what_they_are_made_of(dialogs, tmp_path):
    other = write_set(tmp_path / "other", [answer(1, 5)] * 2, kind="pairs")
    facts = mixture_of(dialogs).facts
    assert facts == mixture_of(dialogs).facts
    for changed in (mixture_of(other), mixture_of(dialogs, "train.global_batch=2")):
        assert facts != changed.facts


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("reward.sources=[]",), "reward.sources is empty"),
        (("model.vocab_size=96",), "reward.sources.web: .* 100 tokens, more than .* = 96"),
    ],
)
def test_wrong_sources_are_told_by_name(dialogs, more, told):
    with pytest.raises(ConfigError, match=told):
        mixture_of(dialogs, *more)
