"""Every layout equals one rank in loss, gradients, updated weights and scores, on real ranks."""

import itertools

import pytest
from layouts import (
    CASES,
    MODELS,
    PLAIN,
    SCALAR_CASES,
    SHARDED,
    SLOW_CASES,
    SLOW_SCALAR_CASES,
    assert_same_runs,
    cases,
    one_rank,
    saved_fresh,
    tiny,
    train,
    train_once,
    trained,
)
from ranks import run_ranks

from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.training import engine


@cases(CASES, SLOW_CASES)
def test_loss_and_grads_and_weights_and_scores_do_not_depend_on_layout(case):
    assert_same_runs(trained(case), one_rank(case.model))


@cases(SCALAR_CASES, SLOW_SCALAR_CASES)
def test_a_reward_models_loss_and_grads_and_weights_do_not_depend_on_layout(case):
    assert_same_runs(trained(case), one_rank(case.model))


BF16 = [case for case in (*CASES, *SLOW_CASES) if case.name in ("tp2", "pp2-vpp2", "tp2-ep2")]
BF16 = [case for case in BF16 if case.model in ("dense", "moe")]
QUICK = [("dense", "tp2"), ("moe", "tp2"), ("moe", "tp2-ep2")]


@cases(
    [case for case in BF16 if (case.model, case.name) in QUICK],
    [case for case in BF16 if (case.model, case.name) not in QUICK],
)
def test_bf16_trains_in_every_layout_with_the_loss_of_fp32(case):
    settings = (*case.settings, *SHARDED, "train.precision=bf16")
    expected = [step["loss"] for step in one_rank(case.model)[1]["metrics"]]
    for (run,) in run_ranks(train, case.ranks, settings):
        assert [step["loss"] for step in run["metrics"]] == pytest.approx(expected, abs=1e-2)


def as_on_a_gpu(folder, *settings):
    """Both runs from saved weights, with metrics of memory that change from step to step."""
    fresh, bytes_held = saved_fresh(folder, *settings), itertools.count()
    engine.gpu_memory = lambda: {"memory_peak_bytes": float(next(bytes_held))}
    settings = (*settings, f"checkpoint.init_from={fresh}")
    configs = [tiny(*settings, *how) for how in (PLAIN, SHARDED)]
    return [train_once(config, Layout.of(config, 1)) for config in configs]


@pytest.mark.parametrize("model", ["dense", "moe-yarn"])
def test_runs_of_a_gpu_can_be_compared_with_those_of_a_cpu(model, tmp_path):
    """tests/gpu does: they begin with saved weights and report memory; the rest is one rank's."""
    runs = run_ranks(as_on_a_gpu, 1, str(tmp_path), *MODELS[model], "train.micro_batch=4")
    assert_same_runs(runs, one_rank(model))
