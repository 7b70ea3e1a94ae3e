"""Mixtures by small runs: cells, swarms, laws and optima, against scipy, scikit-learn and sums."""

from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, curve_fit

from data_prep.cells import Cell as ShardCell
from data_prep.inventory import Inventory
from data_prep.labels import Labels
from megatron_qwen3.config import ConfigError
from megatron_qwen3.studies.mixture import finding
from megatron_qwen3.studies.mixture.cells import cells
from megatron_qwen3.studies.mixture.optimum import divergence, lowest
from megatron_qwen3.studies.mixture.regression import (
    BOOSTING,
    LAW,
    Laws,
    _slopes,
    choose,
    fit_laws,
    fit_model,
    quality,
)
from megatron_qwen3.studies.mixture.swarm import Parts, capped, swarm

BY = ["domain", "quality", "language"]


# ---- cells -------------------------------------------------------------------------------------


def inventory(rows):
    """Of (domain, quality, language): tokens."""
    made = [
        ShardCell(
            f"s{n}", Labels("crawl", language, domain, quality, "unknown", "0-4k"), 1, tokens, 4
        )
        for n, ((domain, quality, language), tokens) in enumerate(rows.items())
    ]
    return Inventory(Path("/nowhere"), {}, 300, (), tuple(made))


ROWS = st.dictionaries(
    st.tuples(
        st.sampled_from(("web", "code", "stem", "books")),
        st.sampled_from(("low", "medium", "high")),
        st.sampled_from(("eng_Latn", "deu_Latn", "fra_Latn", "zho_Hans")),
    ),
    st.integers(1, 10_000),
    min_size=2,
    max_size=40,
)


@settings(deadline=None)
@given(rows=ROWS, least=st.floats(0.0, 0.3))
def test_every_combination_of_labels_is_in_one_cell_and_small_ones_are_joined(rows, least):
    try:
        found = cells(inventory(rows), BY, least)
    except ConfigError as error:
        assert "leave one cell" in str(error)
        return
    for values in rows:
        assert sum(cell.has(dict(zip(BY, values, strict=True))) for cell in found) == 1
    assert sum(cell.tokens for cell in found) == sum(rows.values())
    assert sum(cell.combinations for cell in found) == len(rows)
    small = [cell for cell in found if cell.tokens < least * sum(rows.values())]
    groups = [tuple(cell.labels.values())[:-1] for cell in small]
    assert len(set(groups)) == len(groups)  # none could be joined with another
    assert len({cell.name for cell in found}) == len(found)


def test_small_values_are_joined_within_what_they_share():
    rows = {("web", "high", "eng_Latn"): 500, ("web", "high", "deu_Latn"): 300}
    rows |= {("web", "high", "fra_Latn"): 30, ("web", "high", "zho_Hans"): 40}
    rows |= {("web", "low", "eng_Latn"): 20, ("code", "low", "eng_Latn"): 20}
    rows |= {("code", "high", "eng_Latn"): 90}
    found = cells(inventory(rows), BY, 0.06)
    assert [(cell.name, cell.tokens, cell.combinations) for cell in found] == [
        ("code/high/eng_Latn", 90, 1),
        ("code/low", 20, 1),
        ("web/high/deu_Latn", 300, 1),
        ("web/high/eng_Latn", 500, 1),
        ("web/high/fra_Latn+zho_Hans", 70, 2),
        ("web/low", 20, 1),
    ]
    assert [cell.name for cell in cells(inventory(rows), BY, 0.12)] == [
        "web/high/deu_Latn",
        "web/high/eng_Latn",
        "web/high/fra_Latn+zho_Hans",
        "web/low",
        "code",
    ]


# ---- swarms ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    tokens=st.lists(st.integers(1, 10**9), min_size=2, max_size=20),
    epochs=st.floats(1, 8),
    seed=st.integers(0, 99),
)
def test_a_swarm_keeps_the_caps_and_begins_with_the_natural_mixture(tokens, epochs, seed):
    natural_P = np.array(tokens) / sum(tokens)
    most_P = np.minimum(epochs * natural_P, 1.0)
    rows = swarm(natural_P, most_P, 9, seed)
    assert rows[0] == pytest.approx(natural_P, abs=1e-9)
    assert rows.sum(1) == pytest.approx(np.ones(9))
    assert (rows <= most_P * (1 + 1e-9)).all()
    assert (swarm(natural_P, most_P, 14, seed)[:9] == rows).all()  # more of them begin alike


def test_a_swarm_is_around_the_natural_mixture_and_far_enough_to_learn_from():
    natural_P = np.array([0.6, 0.3, 0.1])
    rows = swarm(natural_P, np.ones(3), 2000, seed=0, temperature=1.0)
    assert rows.mean(0) == pytest.approx(natural_P, abs=0.02)
    assert (rows.std(0) > 0.1).all()


def test_caps_that_leave_no_mixture_are_told():
    with pytest.raises(ConfigError, match="max_epochs allows 90 % of the tokens"):
        swarm(np.array([0.5, 0.5]), np.array([0.5, 0.4]), 3, seed=0)


def test_cells_that_did_not_change_keep_their_ratios_in_every_proposal():
    old_C, is_kept_C = np.array([0.2, 0.6, 0.1, 0.1]), np.array([True, True, False, True])
    natural_C, most_C = np.array([0.4, 0.3, 0.2, 0.1]), np.array([1.0, 0.5, 0.9, 1.0])
    parts = Parts.kept(old_C, is_kept_C)
    natural_P, most_P = parts.natural(natural_C), parts.most(most_C)
    assert natural_P == pytest.approx([0.8, 0.2])
    assert most_P == pytest.approx([0.5 / (0.6 / 0.9), 0.9])
    shares_NC = swarm(natural_P, most_P, 20, seed=1) @ parts.cells_PC
    assert (shares_NC <= most_C + 1e-9).all()
    assert np.ptp(shares_NC[:, 2]) > 0.1
    kept_NC = shares_NC[:, is_kept_C] / shares_NC[:, is_kept_C].sum(1, keepdims=True)
    assert kept_NC == pytest.approx(np.tile(old_C[is_kept_C] / 0.9, (20, 1)))


def test_groups_keep_the_natural_ratios_of_their_parts():
    parts_GP = Parts.of_cells(4).grouped(
        ["web", "web", "code", "web"], np.array([0.4, 0.1, 0.3, 0.2])
    )
    assert parts_GP == pytest.approx(np.array([[4 / 7, 1 / 7, 0, 2 / 7], [0, 0, 1, 0]]))


# ---- laws --------------------------------------------------------------------------------------


def synthetic(parts=4, targets=3, count=40, noise=0.0, seed=0):
    """Mixtures, their losses, and the law behind them: each part helps one target most."""
    rng = np.random.default_rng(seed)
    slopes_TP = rng.uniform(-1.0, 0.3, (targets, parts))
    for target in range(targets):
        slopes_TP[target, target % parts] -= 1.5
    truth = Laws(rng.uniform(1.5, 2.5, targets), slopes_TP)
    natural_P = rng.dirichlet(np.full(parts, 5.0))
    shares_NP = swarm(natural_P, np.ones(parts), count, seed)
    return (
        truth,
        natural_P,
        shares_NP,
        truth.predict(shares_NP) + noise * rng.normal(size=(count, targets)),
    )


def test_a_law_is_found_again_as_scipy_finds_it():
    truth, _, shares_NP, loss_NT = synthetic(noise=1e-3)

    def law(shares_PN, floor, *slopes):
        return floor + np.exp(np.array(slopes) @ shares_PN)

    ours = fit_laws(shares_NP, loss_NT)
    for target, loss_N in enumerate(loss_NT.T):
        start = [truth.floor_T[target], *truth.slopes_TP[target]]
        theirs, _ = curve_fit(law, shares_NP.T, loss_N, start, maxfev=20_000)
        error_N = ours.predict(shares_NP)[:, target] - loss_N
        best_N = law(shares_NP.T, *theirs) - loss_N
        assert (error_N**2).sum() <= 1.02 * (best_N**2).sum()
    unseen_NP = swarm(np.full(4, 0.25), np.ones(4), 50, seed=7)
    assert ours.predict(unseen_NP) == pytest.approx(truth.predict(unseen_NP), abs=5e-3)


def test_slopes_are_those_of_weighted_ridge_regression():
    from sklearn.linear_model import Ridge

    _, _, shares_NP, loss_NT = synthetic(noise=0.01)
    above_N = loss_NT[:, 0] - 1.2
    slopes_P, _ = _slopes(shares_NP, above_N, ridge=0.05)
    ridge = Ridge(alpha=0.05 * (above_N**2).mean())
    ridge.fit(shares_NP, np.log(above_N), sample_weight=above_N**2)
    assert shares_NP @ slopes_P == pytest.approx(ridge.predict(shares_NP), abs=1e-9)


def test_quality_is_that_of_scikit_learn():
    from sklearn.metrics import r2_score

    rng = np.random.default_rng(0)
    measured_N = rng.normal(size=30)
    predicted_N = measured_N + rng.normal(size=30)
    found = quality(measured_N, predicted_N)
    assert found.r2 == pytest.approx(r2_score(measured_N, predicted_N))
    ranks = [np.argsort(np.argsort(values)) for values in (measured_N, predicted_N)]
    assert found.rank == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert quality(measured_N, np.zeros(30)).rank == 0


def test_cross_validation_takes_the_law_where_it_holds_and_boosting_where_it_does_not():
    _, _, shares_NP, loss_NT = synthetic(noise=2e-3)
    best, other = choose(shares_NP, loss_NT, np.full(3, 1 / 3))
    assert (best.form, other.form) == (LAW, BOOSTING)
    assert best.objective.r2 > 0.98 > other.objective.r2
    assert best.objective.rank > 0.97
    assert min(target.r2 for target in best.of_targets) > 0.9
    # A step, which no exponential has.
    shares_NP = swarm(np.full(4, 0.25), np.ones(4), 120, seed=3)
    step_NT = 3.0 - (np.abs(shares_NP[:, :1] - 0.25) < 0.12)
    best, _ = choose(shares_NP, step_NT, np.ones(1))
    assert best.form == BOOSTING


# ---- optima ------------------------------------------------------------------------------------


def best_split(weights_P, rates_P, most_P):
    """Where the sum of w · exp(-a · r) is lowest, under caps: equal slopes but at the ends."""

    def shares(level):
        free_P = np.log(weights_P * rates_P / level) / rates_P
        return np.clip(free_P, 0, most_P)

    level = brentq(lambda level: shares(level).sum() - 1, 1e-9, 1e3, xtol=1e-15)
    return shares(level)


def anywhere(most_P):
    """Mixtures between which all others within one cap lie: as many parts as may be at it."""
    most, count = most_P[0], len(most_P)
    full = int(1 / most + 1e-9)
    corner = [most] * full + [1 - most * full] + [0.0] * count
    return np.array(sorted(set(permutations(corner[:count]))))


@pytest.mark.parametrize("most", [1.0, 0.3])
def test_the_optimum_of_laws_is_where_their_slopes_are_equal(most):
    rng = np.random.default_rng(5)
    rates_P, weights_P = rng.uniform(1, 8, 6), rng.dirichlet(np.ones(6))
    laws = Laws(np.zeros(6), -np.diag(rates_P))
    most_P, natural_P = np.full(6, most), np.full(6, 1 / 6)
    found = lowest(laws, weights_P, natural_P, most_P, 0.0, anywhere(most_P))
    assert found == pytest.approx(best_split(weights_P, rates_P, most_P), abs=2e-4)


def test_no_candidate_is_better_than_the_optimum_of_fitted_laws():
    truth, natural_P, shares_NP, loss_NT = synthetic(parts=5, targets=4, noise=2e-3)
    weights_T, most_P = np.array([0.4, 0.3, 0.2, 0.1]), np.full(5, 0.45)
    laws = fit_laws(shares_NP, loss_NT)
    tried_NP = swarm(natural_P, most_P, 5_000, seed=9)
    for pull in (0.0, 0.02):
        found = lowest(laws, weights_T, natural_P, most_P, pull, anywhere(most_P))
        ours = laws.predict(found[None]) @ weights_T + pull * divergence(found[None], natural_P)
        theirs = laws.predict(tried_NP) @ weights_T + pull * divergence(tried_NP, natural_P)
        assert ours[0] <= theirs.min() + 1e-9
        assert (found <= most_P + 1e-9).all()
        assert found.sum() == pytest.approx(1)
        # And what was really wanted is nearly as low as it gets.
        assert (truth.predict(found[None]) @ weights_T)[0] < (
            (truth.predict(tried_NP) @ weights_T).min() + 0.01 + pull
        )


def test_a_strong_pull_gives_the_natural_mixture():
    truth, natural_P, *_ = synthetic()
    found = lowest(truth, np.full(3, 1 / 3), natural_P, np.ones(4), 1e3, anywhere(np.ones(4)))
    assert found == pytest.approx(natural_P, abs=2e-3)


def test_no_part_has_less_than_in_any_mixture_that_was_tried():
    """What a law says of a domain left out no run has shown."""
    laws = Laws(np.zeros(1), np.array([[-5.0, 0.0, 0.0]]))  # the more of the first the better
    tried_NP = np.array([[0.3, 0.3, 0.4], [0.5, 0.1, 0.4], [0.6, 0.3, 0.1]])
    found = lowest(laws, np.ones(1), tried_NP[0], np.ones(3), 0.0, tried_NP)
    assert found == pytest.approx(tried_NP[2], abs=1e-6)
    capped = lowest(laws, np.ones(1), tried_NP[0], np.array([0.55, 1.0, 1.0]), 0.0, tried_NP)
    assert capped[0] == pytest.approx(0.55, abs=1e-6)
    assert capped[1] >= 0.1 - 1e-9 and capped[2] >= 0.1 - 1e-9


def test_hundreds_of_mixtures_have_an_optimum_that_none_of_them_is_below():
    rng, parts = np.random.default_rng(2), 60
    natural_P, most_P = rng.dirichlet(np.ones(parts)), np.ones(parts)
    laws = Laws(np.zeros(parts), -np.diag(rng.uniform(1, 8, parts)))
    tried_NP, weights_T = swarm(natural_P, most_P, 3 * parts, seed=4), np.full(parts, 1 / parts)
    found = lowest(laws, weights_T, natural_P, most_P, 0.0, tried_NP)
    assert found.sum() == pytest.approx(1)
    between_NP = rng.dirichlet(np.full(len(tried_NP), 0.02), 2_000) @ tried_NP
    theirs = laws.predict(np.vstack([tried_NP, between_NP])) @ weights_T
    assert (laws.predict(found[None]) @ weights_T)[0] <= theirs.min() + 1e-9


def test_the_optimum_of_boosting_is_among_the_best_candidates():
    truth, natural_P, shares_NP, loss_NT = synthetic(count=150)
    weights_T = np.full(3, 1 / 3)
    model = fit_model(BOOSTING, 0.0, shares_NP, loss_NT)
    tried_NP = swarm(natural_P, np.ones(4), 4_000, seed=11)
    found = lowest(model, weights_T, natural_P, np.ones(4), 0.0, tried_NP)
    objective_N = truth.predict(tried_NP) @ weights_T
    assert (truth.predict(found[None]) @ weights_T)[0] < np.quantile(objective_N, 0.05)


def test_laws_of_groups_are_the_laws_of_their_parts():
    truth, natural_P, *_ = synthetic()
    parts_GP = Parts.of_cells(4).grouped(["a", "b", "a", "b"], natural_P)
    shares_G = np.array([0.3, 0.7])
    of_groups = truth.within(parts_GP).predict(shares_G[None])
    assert of_groups == pytest.approx(truth.predict((shares_G @ parts_GP)[None]))


def test_a_mixture_above_its_caps_is_brought_under_them():
    assert capped(np.array([0.8, 0.1, 0.1]), np.array([0.5, 1, 1])) == pytest.approx(
        [0.5, 0.25, 0.25]
    )
    assert capped(np.array([1.0, 0, 0]), np.array([0.5, 0.5, 0.2])).sum() == pytest.approx(1)


def test_a_coarse_mixture_that_the_caps_leave_no_room_for_is_left_out():
    """Its groups keep their natural ratios, so that the cap of one cell is that of its group."""
    _, _, shares_NP, loss_NT = synthetic(targets=2)
    labels = [{"domain": (d,), "quality": (q,)} for d in ("web", "code") for q in ("high", "low")]
    corpus = SimpleNamespace(
        natural_C=np.array([0.1, 0.3, 0.3, 0.3]),
        most_C=np.array([0.02, 0.4, 0.4, 0.4]),
        cells=[SimpleNamespace(labels=row) for row in labels],
        coarse=("domain",),
        study=SimpleNamespace(seed=0, temperature=2.0, pull=0.01),
    )
    tried = finding.TriedMixtures(("a", "b"), np.array([0.5, 0.5]), shares_NP, loss_NT[None])
    found = finding.find(corpus, Parts.of_cells(4), tried)
    assert set(found.mixtures) == {finding.CELLS, finding.NATURAL}
    for shares_C in found.mixtures.values():
        assert (shares_C <= corpus.most_C + 1e-9).all()
