"""Laws are recovered from losses that follow one, and name numbers that runs do not determine."""

import dataclasses
import math

import numpy as np
import pytest

from megatron_qwen3.config import ConfigError
from megatron_qwen3.studies import isoflop, laws, parametric, tuning
from megatron_qwen3.studies.levels import levels
from megatron_qwen3.studies.measurements import Measurement, best
from megatron_qwen3.studies.parametric import LossLaw

CHINCHILLA = LossLaw(1.69, 406.4, 0.34, 410.7, 0.28)  # arXiv 2203.15556, eq. 10
OTHER = LossLaw(2.2, 60.0, 0.25, 2500.0, 0.4)
SIZES, TOKENS = 2e7 * 2.0 ** np.arange(6), 4e8 * 2.0 ** np.arange(6)
N, D = (grid.ravel() for grid in np.meshgrid(SIZES, TOKENS, indexing="ij"))


def noisy(law, spread, seed=0):
    return law.loss(N, D) * np.exp(spread * np.random.default_rng(seed).standard_normal(len(N)))


def runs_of(law, spread=0.0, seed=0):
    losses = noisy(law, spread, seed)
    return [
        Measurement(f"n{n:.0f}d{d:.0f}", "general", n, d, float(loss), 6 * n * d)
        for n, d, loss in zip(N, D, losses, strict=True)
    ]


@pytest.mark.parametrize("law", [CHINCHILLA, OTHER], ids=["chinchilla", "other"])
def test_five_numbers_are_recovered_where_there_is_no_noise(law):
    found = parametric.fit(N, D, law.loss(N, D))
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(law), rel=1e-5)


@pytest.mark.parametrize("law", [CHINCHILLA, OTHER], ids=["chinchilla", "other"])
@pytest.mark.parametrize("seed", range(3))
def test_with_noise_the_loss_of_a_hundredfold_compute_is_predicted(law, seed):
    found = parametric.fit(N, D, noisy(law, 0.002, seed))
    size, tokens = 10 * SIZES[-1], 10 * TOKENS[-1]
    assert float(found.loss(size, tokens)) == pytest.approx(float(law.loss(size, tokens)), rel=0.02)
    assert found.alpha == pytest.approx(law.alpha, abs=0.05)
    assert found.beta == pytest.approx(law.beta, abs=0.05)


def test_resampled_laws_hold_the_true_one_in_their_spread():
    inside = 0
    for seed in range(8):
        loss = noisy(CHINCHILLA, 0.003, seed)
        found = parametric.fit(N, D, loss)
        drawn = parametric.bootstrap(found, N, D, loss, draws=20, seed=seed)
        low, high = np.percentile([law.beta for law in drawn], [5, 95])
        inside += low <= CHINCHILLA.beta <= high
    assert inside >= 5  # of 8; a 90 % interval should hold 7.2 of them


def test_the_law_does_not_depend_on_order_or_units_or_on_every_run_standing_twice():
    loss = noisy(CHINCHILLA, 0.002)
    found = parametric.fit(N, D, loss)
    exponents = pytest.approx((found.E, found.alpha, found.beta), rel=1e-3)
    order = np.random.default_rng(1).permutation(len(N))
    again = (
        parametric.fit(N[order], D[order], loss[order]),
        parametric.fit(N / 1e6, D / 1e9, loss),
        parametric.fit(np.tile(N, 2), np.tile(D, 2), np.tile(loss, 2)),
    )
    for law in again:
        assert (law.E, law.alpha, law.beta) == exponents


def test_one_run_that_went_wrong_hardly_moves_the_law():
    loss = noisy(CHINCHILLA, 0.0005)
    broken = loss.copy()
    broken[17] *= 1.5
    good, with_broken = parametric.fit(N, D, loss), parametric.fit(N, D, broken)
    assert with_broken.loss(1e10, 1e12) == pytest.approx(good.loss(1e10, 1e12), rel=0.005)


def test_a_law_whose_numbers_the_runs_do_not_show_is_doubted():
    assert parametric.fit(N, D, CHINCHILLA.loss(N, D)).doubts(2.7) == []
    no_size = parametric.fit(N, D, 40 / D**0.1)
    told = " ".join(no_size.doubts(3.0))
    assert "E = " in told


def test_no_best_size_is_made_up_where_size_or_tokens_show_no_effect():
    for flat in ("alpha", "beta"):
        law = dataclasses.replace(CHINCHILLA, **{flat: 1e-3})
        assert law.doubts(2.7) and np.isnan(law.allocation(1e22)).all()


def test_values_within_a_rounding_are_one_level_wherever_they_lie():
    for scale in np.geomspace(1, 3, 40):
        assert levels(scale * np.array([3e5, 2.99e5, 1.5e5, 3.1e5])).tolist() == [1, 1, 0, 1]


def test_an_allocation_spends_the_compute_and_no_other_has_a_lower_loss():
    size, tokens = CHINCHILLA.allocation(1e22)
    assert 6 * size * tokens == pytest.approx(1e22)
    others = [float(CHINCHILLA.loss(size * f, tokens / f)) for f in (0.5, 0.99, 1.01, 2)]
    assert min(others) > float(CHINCHILLA.loss(size, tokens))
    assert CHINCHILLA.size_exponent == pytest.approx(0.28 / 0.62)


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        (N < 3e7, "6 runs of 1 sizes and 6 token counts"),
        (
            (N < 1e8) & (D < 2e9) & (N * D < 5e16) & (N + D > 4.3e8),
            "5 runs of 3 sizes and 3 token counts",
        ),
        (D < 9e8, "12 runs of 6 sizes and 2 token counts"),
    ],
    ids=["one size", "five runs", "two lengths"],
)
def test_too_few_runs_are_told_what_is_missing(keep, told):
    with pytest.raises(ConfigError, match="at least 6 runs, 3 sizes and 3 token counts") as error:
        parametric.fit(N[keep], D[keep], CHINCHILLA.loss(N[keep], D[keep]))
    assert told in str(error.value)


def test_valleys_find_the_best_size_of_the_law_without_knowing_its_form():
    valleys = isoflop.find(6 * N * D, N, D, CHINCHILLA.loss(N, D))
    inside = [v for v in valleys if v.bottom == "inside"]
    assert len(inside) >= 5
    for valley in inside:
        size, tokens = CHINCHILLA.allocation(valley.compute)
        assert valley.parameters == pytest.approx(size, rel=0.1)
        assert valley.tokens == pytest.approx(tokens, rel=0.1)
        assert valley.loss == pytest.approx(float(CHINCHILLA.loss(size, tokens)), rel=0.002)
    power = isoflop.fit_power([v.compute for v in inside], [v.parameters for v in inside])
    assert power.exponent == pytest.approx(CHINCHILLA.size_exponent, abs=0.02)


@pytest.mark.parametrize(("keep", "side"), [(slice(3, 6), "below"), (slice(0, 3), "above")])
def test_a_valley_whose_bottom_was_not_sampled_says_on_which_side_it_is(keep, side):
    size, tokens = CHINCHILLA.allocation(1e19)
    sizes = (size * 2.0 ** np.array([-3.0, -2.5, -2, 2, 2.5, 3]))[keep]
    loss = CHINCHILLA.loss(sizes, 1e19 / 6 / sizes)
    (valley,) = isoflop.find(np.full(3, 1e19), sizes, 1e19 / 6 / sizes, loss)
    assert valley.bottom == side
    assert math.isnan(valley.parameters)


def sweep(size, tokens, rates, batches, best_lr, best_batch):
    lowest = float(CHINCHILLA.loss(size, tokens))
    for lr in rates:
        for batch in batches:
            loss = lowest + 0.02 * math.log(lr / best_lr) ** 2
            loss += 0.01 * math.log(batch / best_batch) ** 2
            yield Measurement("r", "s", size, tokens, loss, 6 * size * tokens, lr, batch)


def step_law(size, tokens):
    """arXiv 2503.04715, eq. 1: learning rate and batch in tokens."""
    return 1.79 * size**-0.713 * tokens**0.307, 0.58 * tokens**0.571


def step_law_runs():
    runs = []
    for size in SIZES[:4]:
        for tokens in TOKENS[:3]:
            lr, batch = step_law(size, tokens)
            rates, batches = lr * 2.0 ** np.arange(-2.3, 3), batch * 4.0 ** np.arange(-1.2, 1.8)
            runs += sweep(size, tokens, rates, batches, lr, batch)
    return runs


def test_laws_of_learning_rate_and_batch_are_recovered_and_extrapolate():
    optima = tuning.find(step_law_runs())
    assert len(optima) == 12
    rate, batch = tuning.fit_lr(optima)[0], tuning.fit_batch(optima)[0]
    assert rate.form == "N, D"
    assert rate.exponents == pytest.approx((-0.713, 0.307), abs=1e-3)
    target = (1e9, 1e11, 6e20)
    expected = step_law(1e9, 1e11)
    assert (rate(*target), batch(*target)) == pytest.approx(expected, rel=0.01)
    assert rate.left_out_error < 1.01


def test_a_run_that_diverged_does_not_bend_its_sweep():
    runs = list(sweep(1e8, 1e9, [1e-3, 2e-3, 4e-3, 8e-3], [1e5], 2.5e-3, 1e5))
    runs[-1] = dataclasses.replace(runs[-1], loss=11.0)
    (optimum,) = tuning.find(runs)
    assert optimum.lr == pytest.approx(2.5e-3, rel=1e-6)


def test_a_lowest_loss_at_the_edge_is_a_bound_and_no_optimum():
    (optimum,) = tuning.find(list(sweep(1e8, 1e9, [1e-3, 2e-3, 4e-3], [1e5], 2e-2, 1e5)))
    assert math.isnan(optimum.lr)
    assert optimum.at_edge == "lr = 0.004 is the highest that was tried"
    assert tuning.fit_lr([optimum]) == []


def test_the_largest_runs_are_predicted_without_having_been_seen():
    runs = runs_of(CHINCHILLA, 0.002)
    held_out = laws.hold_out(runs)
    names = {p.run.name for p in held_out.predictions}
    assert len(names) == 7
    largest = sorted(runs, key=lambda run: run.compute)[-7:]
    assert names == {run.name for run in largest}
    assert held_out.mean_error < 0.01 < held_out.guess_error
    spoiled = [dataclasses.replace(r, loss=9.0) if r.name in names else r for r in runs]
    assert laws.hold_out(spoiled).law == held_out.law


def test_the_law_of_loss_rests_on_the_best_run_of_each_size_and_length():
    runs = runs_of(CHINCHILLA)
    worse = [dataclasses.replace(run, loss=run.loss + 1) for run in runs]
    assert sorted(r.loss for r in best([*worse, *runs])) == sorted(r.loss for r in runs)
    (found,) = laws.analyse([*worse, *runs], draws=3)
    assert found.loss_law.loss(1e9, 1e11) == pytest.approx(CHINCHILLA.loss(1e9, 1e11), rel=1e-4)


def test_stages_have_laws_of_their_own():
    other = [dataclasses.replace(run, stage="long") for run in runs_of(OTHER)]
    found = {one.stage: one for one in laws.analyse([*runs_of(CHINCHILLA), *other], draws=2)}
    for stage, law in (("general", CHINCHILLA), ("long", OTHER)):
        assert found[stage].loss_law.beta == pytest.approx(law.beta, rel=1e-3)


def test_what_is_not_determined_is_missing_with_its_reason():
    (only_loss,) = laws.analyse(runs_of(CHINCHILLA), draws=2)
    assert [reason.split(":")[0] for reason in only_loss.missing] == [
        "law of the best learning rate",
        "law of the best batch",
    ]
    few = [dataclasses.replace(run, stage="few") for run in runs_of(CHINCHILLA)[:4]]
    assert [one.has_any for one in laws.analyse([*runs_of(CHINCHILLA), *few], 2)] == [True, False]
    with pytest.raises(ConfigError, match="no law can be read from these runs"):
        laws.analyse(few, draws=2)


def test_advice_follows_the_laws_and_gives_a_power_of_two():
    (found,) = laws.analyse(step_law_runs(), draws=2)
    lr, batch = step_law(7e9, 1e12)
    advice = found.recommend(7e9, 1e12, 4.2e22, sequence_length=4096)
    assert advice.lr == pytest.approx(lr, rel=0.02)
    assert advice.global_batch == 2 ** round(math.log2(batch / 4096))
    assert advice.extrapolation == pytest.approx(4.2e22 / max(r.compute for r in found.runs))
