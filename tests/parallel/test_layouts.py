"""Every layout equals one rank in loss, gradients, updated weights and scores, on real ranks."""

import pytest
from layouts import (
    CASES,
    SCALAR_CASES,
    SHARDED,
    SLOW_CASES,
    SLOW_SCALAR_CASES,
    assert_same_runs,
    cases,
    one_rank,
    train,
    trained,
)
from ranks import run_ranks


@cases(CASES, SLOW_CASES)
def test_loss_and_grads_and_weights_and_scores_do_not_depend_on_layout(case):
    assert_same_runs(trained(case), one_rank(case.model))


@cases(SCALAR_CASES, SLOW_SCALAR_CASES)
def test_a_reward_models_loss_and_grads_and_weights_do_not_depend_on_layout(case):
    assert_same_runs(trained(case), one_rank(case.model))


BF16 = [case for case in CASES if case.name in ("tp2", "pp2-vpp2", "tp2-ep2")]
QUICK = [("dense", "tp2"), ("moe", "pp2-vpp2"), ("moe", "tp2-ep2")]


@cases(
    [case for case in BF16 if (case.model, case.name) in QUICK],
    [case for case in BF16 if (case.model, case.name) not in QUICK],
)
def test_bf16_trains_in_every_layout_with_the_loss_of_fp32(case):
    settings = (*case.settings, *SHARDED, "train.precision=bf16")
    expected = [step["loss"] for step in one_rank(case.model)[1]["metrics"]]
    for (run,) in run_ranks(train, case.ranks, settings):
        assert [step["loss"] for step in run["metrics"]] == pytest.approx(expected, abs=1e-2)
