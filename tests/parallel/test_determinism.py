"""run.deterministic chooses repeatable kernels, and is refused where the environment undoes it."""

import os

import pytest
import torch
from ranks import run_ranks
from test_checkpoint import settings, steps

from megatron_qwen3.config import ConfigError
from megatron_qwen3.parallel import determinism, runtime
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.failures import explain


def trained(config):
    layout = runtime.start(config)
    engine = Engine(config, layout)
    losses = steps(engine, 0, 2)
    return {
        "losses": losses,
        "torch": torch.are_deterministic_algorithms_enabled(),
        "megatron-core": engine.model.chunks[0].config.deterministic_mode,
        "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "nccl": os.environ.get("NCCL_ALGO"),
    }


@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_a_cpu_trains_the_same_with_it_and_everyone_is_told(tmp_path, preset):
    asked = settings(tmp_path, preset, "one", "run.deterministic=true")
    (plain,) = run_ranks(trained, 1, settings(tmp_path, preset, "one"))
    (repeatable,) = run_ranks(trained, 1, asked)
    assert repeatable["losses"] == plain["losses"]
    assert not plain["torch"] and not plain["megatron-core"] and plain["nccl"] is None
    assert repeatable["torch"] and repeatable["megatron-core"]
    assert (repeatable["cublas"], repeatable["nccl"]) == (":4096:8", "^NVLS")


@pytest.mark.parametrize(
    "name, value", [("CUBLAS_WORKSPACE_CONFIG", ":0:0"), ("NCCL_ALGO", "NVLS,Ring")]
)
def test_an_environment_that_undoes_it_is_refused(tmp_path, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    determinism.check(settings(tmp_path, "tiny-dense", "one"))
    asked = settings(tmp_path, "tiny-dense", "one", "run.deterministic=true")
    with pytest.raises(ConfigError, match=f"{name}={value}; valid: none, or one of"):
        determinism.check(asked)
    monkeypatch.setenv(name, {"NCCL_ALGO": "Ring"}.get(name, ":16:8"))
    determinism.check(asked)


def test_where_torch_cannot_the_run_says_so(tmp_path):
    asked = settings(tmp_path, "tiny-dense", "one", "run.deterministic=true")
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError) as caught:
            torch.ones(2).put_(torch.tensor([0]), torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)
    assert "cannot keep run.deterministic = true (put_ does not" in explain(caught.value, asked)
