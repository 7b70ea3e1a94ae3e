"""Transformer Engine's AdamW with moments of both types, and the host's share of it: updates,
checkpoints and optimizers that load them. Its one kernel is stood in by the formula of AdamW."""

import pytest
import torch

from megatron_qwen3.config import load
from megatron_qwen3.storage import folder
from tests.te.te_ranks import run_te_ranks

NARROW = ("optim.first_moment=bf16", "optim.second_moment=bf16")
ONE_OF_EACH = ("optim.first_moment=bf16",)
REDUCED = (*NARROW, "optim.gradients=bf16")


def asked(run_dir, *more):
    base = ["model.preset=tiny-moe", "train.steps=9", "train.global_batch=4", "model.kind=torch"]
    return load([], [*base, "data.sequence_length=16", f"run.dir={run_dir}", *more])


def _steps(engine, first, last):
    from megatron_qwen3.training.batch import TokenBatch
    from megatron_qwen3.training.objectives import cross_entropy

    losses = []
    for step in range(first, last):
        ids = torch.randint(512, (4, 17), generator=torch.Generator().manual_seed(step))
        mine = ids.chunk(engine.layout.data)[engine.data_rank]
        batch = TokenBatch.of(mine[:, :-1], mine[:, 1:].contiguous())
        losses.append(engine.train_step(batch, cross_entropy, 1e-3)["loss"])
    return losses


def _state(engine):
    from megatron_qwen3.training import optim

    engine.model.synchronize()
    weights = [p.detach().clone() for p in engine.model.chunks[0].parameters()]
    states = [
        {name: x.detach().clone() for name, x in state.tensors.items()}
        for state in optim.owned_states(engine.optimizer)
    ]
    return weights, states


def trained(config):
    """Two steps, a save, two more: losses, weights and AdamW's state at both, and whose it is."""
    from megatron_qwen3.parallel.runtime import start
    from megatron_qwen3.training import optim, saver
    from megatron_qwen3.training.engine import Engine

    engine = Engine(config, start(config))
    losses = _steps(engine, 0, 2)
    middle = _state(engine)
    saver.save(engine, config, 2)
    losses += _steps(engine, 2, 4)
    return losses, middle, _state(engine), optim.described(engine.optimizer)


def resumed(config, path, whole):
    """State as it is loaded, all of it or weights alone, and after two more steps."""
    from megatron_qwen3.parallel.runtime import start
    from megatron_qwen3.training import checkpoint
    from megatron_qwen3.training.engine import Engine

    engine = Engine(config, start(config))
    _state(engine)  # AdamW has its own weights before any are loaded
    (checkpoint.load if whole else checkpoint.load_weights)(engine, path)
    middle = _state(engine)
    return _steps(engine, 2, 4), middle, _state(engine)


def same(found, expected, kinds=("fp32_param", "exp_avg", "exp_avg_sq"), **tolerance):
    for mine, theirs in zip(found[0], expected[0], strict=True):
        assert torch.allclose(mine.float(), theirs.float(), **tolerance)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        for kind in kinds:
            assert torch.allclose(mine[kind].float(), theirs[kind].float(), **tolerance), kind


EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(scope="module")
def by_torch(tmp_path_factory):
    config = asked(tmp_path_factory.mktemp("torch"), "optim.adam=torch")
    found = run_te_ranks(trained, 2, config)
    assert found[0][3] == "torch.optim.adamw.AdamW, fused"
    return 2, config, found


def test_fused_adam_updates_as_torchs(tmp_path):
    """In float32: with bf16 weights the last bit of one is another gradient of all."""
    wide = ("train.precision=fp32",)
    of_kinds = [
        run_te_ranks(trained, 1, asked(tmp_path / kind, f"optim.adam={kind}", *wide))[0]
        for kind in ("te", "torch")
    ]
    mine, theirs = of_kinds
    assert mine[3].endswith("FusedAdam") and theirs[3].startswith("torch.optim")
    assert mine[0] == pytest.approx(theirs[0], rel=1e-6)
    same(mine[2], theirs[2], ("exp_avg", "exp_avg_sq"), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "types",
    [
        pytest.param(NARROW, id="both"),
        pytest.param(ONE_OF_EACH, id="one"),
        pytest.param(REDUCED, id="reduced", marks=pytest.mark.slow),
    ],
)
def test_narrow_moments_train_alike_and_resume_to_the_bit(by_torch, tmp_path, types):
    ranks, wide, expected = by_torch
    config = asked(tmp_path, "optim.adam=te", *types)
    found = run_te_ranks(trained, ranks, config)
    path = folder.newest(config.run_dir)
    again = run_te_ranks(resumed, ranks, config, path, True)
    for mine, theirs, more in zip(found, expected, again, strict=True):
        state = mine[1][1][0]
        assert state["exp_avg"].dtype == torch.bfloat16
        assert state["exp_avg_sq"].dtype == (torch.float32 if len(types) == 1 else torch.bfloat16)
        assert state["fp32_param"].dtype == torch.float32
        assert mine[0] == pytest.approx(theirs[0], rel=2e-3)
        if types != REDUCED:
            # Half of bf16's last place, of a moment that is rounded in each of two steps.
            same(mine[1], theirs[1], ("exp_avg",), rtol=2**-7, atol=2e-3)
        assert more[0] == mine[0][2:]
        same(more[1], mine[1], **EXACT)
        same(more[2], mine[2], **EXACT)


def test_a_run_of_other_types_takes_a_checkpoint_up(by_torch, tmp_path):
    ranks, wide, expected = by_torch
    path = folder.newest(wide.run_dir)
    config = asked(tmp_path / "narrow", "optim.adam=te", *NARROW)
    for mine, theirs in zip(
        run_te_ranks(resumed, ranks, config, path, True), expected, strict=True
    ):
        same(mine[1], theirs[1], ("fp32_param",), **EXACT)
        same(mine[1], theirs[1], ("exp_avg", "exp_avg_sq"), rtol=2**-8, atol=0)
        assert mine[0] == pytest.approx(theirs[0][2:], rel=2e-3)


def test_weights_that_are_loaded_are_adamws_own_too(by_torch, tmp_path):
    ranks, wide, expected = by_torch
    path = folder.newest(wide.run_dir)
    config = asked(tmp_path / "weights", "optim.adam=te", *NARROW)
    for mine, theirs in zip(
        run_te_ranks(resumed, ranks, config, path, False), expected, strict=True
    ):
        same(mine[1], theirs[1], ("fp32_param",), **EXACT)
        assert all(not state["exp_avg"].any() for state in mine[1][1])
