"""The layouts of tests/parallel on GPUs over NCCL, as many of them as there are GPUs for.

    pytest -m gpu tests/gpu

One GPU is held to one CPU rank first: a table that only compares GPUs with a GPU would miss a
fault of all of them. Products are whole float32 ones here, not TF32.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layouts import (
    CASES,
    MODELS,
    PLAIN,
    SHARDED,
    SLOW_CASES,
    assert_same_runs,
    cases,
    one_rank,
    train,
    trained,
)
from ranks import run_ranks

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def enough_gpus(request):
    case = request.node.callspec.params.get("case") if hasattr(request.node, "callspec") else None
    if case and case.ranks > torch.cuda.device_count():
        pytest.skip(f"needs {case.ranks} GPUs, here are {torch.cuda.device_count()}")


@pytest.mark.parametrize("model", MODELS)
def test_one_gpu_equals_one_cpu_rank_from_the_same_weights(model, tmp_path):
    expected, fresh = on_cpu(model, tmp_path)
    settings = (*MODELS[model], "train.micro_batch=4", f"checkpoint.init_from={fresh}")
    assert_same_runs(run_ranks(train, 1, (*settings, *PLAIN), (*settings, *SHARDED)), expected)


@cases([case for case in (*CASES, *SLOW_CASES) if case.ranks == 1])
def test_one_gpu_gives_the_same_with_micro_batches_and_recomputation(case):
    assert_same_runs(trained(case), one_rank(case.model))


@cases([case for case in (*CASES, *SLOW_CASES) if case.ranks > 1])
def test_loss_and_grads_and_weights_and_scores_do_not_depend_on_layout(case):
    assert_same_runs(trained(case), one_rank(case.model))


@pytest.mark.parametrize("model", MODELS)
def test_bf16_trains_with_the_loss_of_float32(model):
    expected = [step["loss"] for step in one_rank(model)[1]["metrics"]]
    settings = (*MODELS[model], *SHARDED, "train.micro_batch=4", "train.precision=bf16")
    ((run,),) = run_ranks(train, 1, settings)
    assert [step["loss"] for step in run["metrics"]] == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("model", ["dense", "moe"])
def test_the_same_steps_give_the_same_bits_where_that_was_asked_for(model):
    settings = (*MODELS[model], *PLAIN, "train.micro_batch=4", "train.precision=bf16")
    asked = (*settings, "run.deterministic=true")
    first, second = (run_ranks(train, 1, asked)[0][0] for _ in range(2))
    assert first["metrics"] == second["metrics"]
    for mine, other in zip(first["weights"], second["weights"], strict=True):
        assert torch.equal(mine[-1], other[-1]), mine[0]


def on_cpu(model, folder):
    """Both runs on one CPU rank, and a checkpoint of the weights that they began with."""
    command = [sys.executable, str(Path(__file__).parent / "on_cpu.py"), model, str(folder)]
    subprocess.run(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=True, timeout=240)
    return pickle.loads((folder / "runs").read_bytes())
