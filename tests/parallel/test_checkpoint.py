"""Checkpoints: a resumed run equals an undisturbed one, in the same layout and in any other."""

from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from shards import assemble, difference, local_shards

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training import checkpoint, optim, origin, saver
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy

SEQUENCES, POSITIONS, VOCABULARY = 8, 32, 512
LAYOUTS = {
    "one": (1, ()),
    "dp2": (2, ()),
    "tp2-pp2": (4, ("parallel.tensor=2", "parallel.pipeline=2")),
    "pp2-vpp2": (2, ("parallel.pipeline=2", "parallel.virtual_pipeline=2")),
    "tp2-ep2": (2, ("parallel.tensor=2", "parallel.expert=2")),
    "etp2": (2, ("parallel.tensor=2", "parallel.expert_tensor=2")),
}


def settings(run_dir, preset, layout, *more):
    return load(
        [],
        [
            f"model.preset={preset}",
            "train.steps=9",
            "train.micro_batch=2",
            "train.precision=fp32",
            f"train.global_batch={SEQUENCES}",
            f"data.sequence_length={POSITIONS}",
            f"run.dir={run_dir}",
            *LAYOUTS[layout][1],
            *more,
        ],
    )


def steps(engine, first, last):
    """The losses of steps first … last-1; step s always sees the same batch."""
    rows = SEQUENCES // engine.layout.data
    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(VOCABULARY, (SEQUENCES, POSITIONS + 1), generator=generator)
        mine = ids[engine.data_rank * rows : (engine.data_rank + 1) * rows]
        batch = TokenBatch.of(mine[:, :-1], mine[:, 1:])
        losses.append(engine.train_step(batch, cross_entropy, 1e-3)["loss"])
    return losses


def weights_of(engine):
    engine.model.synchronize()
    return local_shards(engine.model.chunks, lambda t: t)


def undisturbed(config):
    engine = Engine(config, start(config))
    losses = steps(engine, 0, 2)
    saver.save(engine, config, 2)
    return losses + steps(engine, 2, 5), weights_of(engine)


def resumed(config, path):
    engine = Engine(config, start(config))
    assert checkpoint.load(engine, path).step == 2
    assert engine.model.weights_version == 2
    checkpoint.load(engine, path)  # a run that goes back never has a version twice
    assert engine.model.weights_version == 3
    return steps(engine, 2, 5), weights_of(engine)


@pytest.mark.parametrize(
    ("preset", "layout", "more"),
    [
        ("tiny-dense", "tp2-pp2", ()),
        pytest.param("tiny-moe", "dp2", (), marks=pytest.mark.slow),
        pytest.param("tiny-moe", "tp2-ep2", ("train.precision=bf16",), marks=pytest.mark.slow),
        ("tiny-moe", "dp2", ("train.precision=bf16", "optim.distributed=false")),
    ],
)
def test_a_resumed_run_equals_an_undisturbed_one_to_the_bit(tmp_path, preset, layout, more):
    config, ranks = settings(tmp_path, preset, layout, *more), LAYOUTS[layout][0]
    whole = run_ranks(undisturbed, ranks, config)
    (saved,) = checkpoint.checkpoints(config.run_dir)
    again = run_ranks(resumed, ranks, config, saved)
    assert again[0][0] == whole[0][0][2:]
    weights = assemble([shards for _, shards in again])
    for name, expected in assemble([shards for _, shards in whole]).items():
        assert torch.equal(weights[name], expected), name


@pytest.mark.parametrize(
    ("preset", "before", "after"),
    [
        ("tiny-dense", "dp2", "pp2-vpp2"),
        ("tiny-moe", "tp2-ep2", "etp2"),
        pytest.param("tiny-moe", "etp2", "one", marks=pytest.mark.slow),
        pytest.param("tiny-moe", "one", "tp2-ep2", marks=pytest.mark.slow),
        pytest.param("tiny-moe", "etp2", "pp2-vpp2", marks=pytest.mark.slow),
        pytest.param("tiny-dense", "pp2-vpp2", "tp2-pp2", marks=pytest.mark.slow),
        pytest.param("tiny-moe", "pp2-vpp2", "tp2-ep2", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_in_another_layout_with_the_same_losses(tmp_path, preset, before, after):
    config = settings(tmp_path, preset, before)
    whole = run_ranks(undisturbed, LAYOUTS[before][0], config)
    (saved,) = checkpoint.checkpoints(config.run_dir)
    changed = settings(tmp_path, preset, after)
    again = run_ranks(resumed, LAYOUTS[after][0], changed, saved)
    assert again[0][0] == pytest.approx(whole[0][0][2:], rel=1e-6)
    weights = assemble([shards for _, shards in again])
    worst, name = difference(weights, assemble([shards for _, shards in whole]))
    assert worst < 1e-5, name


def only_loaded(config, path):
    engine = Engine(config, start(config))
    checkpoint.load_weights(engine, path)
    return weights_of(engine)


def saved_once(config):
    engine = Engine(config, start(config))
    steps(engine, 0, 1)
    saver.save(engine, config, 1)
    return weights_of(engine)


@pytest.mark.parametrize(("precision", "layout"), [("fp32", "dp2"), ("bf16", "one")])
def test_a_new_stage_starts_from_the_saved_weights(tmp_path, precision, layout):
    """On two data ranks the saved weights are those after the step, not half of those before."""
    config = settings(tmp_path, "tiny-moe", layout, f"train.precision={precision}")
    ranks = LAYOUTS[layout][0]
    saved_weights = assemble(run_ranks(saved_once, ranks, config))
    loaded = assemble(run_ranks(only_loaded, ranks, config, checkpoint.find(str(config.run_dir))))
    for name, expected in saved_weights.items():
        assert torch.equal(loaded[name], expected), name


def moved_by_a_still_step(config, path):
    engine = Engine(config, start(config))
    checkpoint.load_weights(engine, path)
    rows = torch.randint(VOCABULARY, (SEQUENCES, POSITIONS + 1))
    engine.train_step(TokenBatch.of(rows[:, :-1], rows[:, 1:]), cross_entropy, 0.0)
    engine.model.synchronize()
    return local_shards(engine.model.chunks, lambda t: t if t.requires_grad else None)


def test_master_weights_follow_the_loaded_ones(tmp_path):
    config = settings(tmp_path, "tiny-dense", "one", "train.precision=bf16")
    saved_weights = assemble(run_ranks(saved_once, 1, config))
    path = checkpoint.find(str(config.run_dir))
    still = assemble(run_ranks(moved_by_a_still_step, 1, config, path))
    for name, values in still.items():
        assert torch.equal(values, saved_weights[name]), name


def masters_of(engine):
    """The float32 weights that this rank's optimizer updates, by parameter."""
    updated = []
    for state in optim.owned_states(engine.optimizer):
        own = state.param.detach().view(-1)[state.start : state.start + state.numel]
        updated.append(state.tensors.get("fp32_param", own).clone().view(-1))
    assert all(tensor.dtype == torch.float32 for tensor in updated)
    return updated


def masters_saved(config):
    engine = Engine(config, start(config))
    steps(engine, 0, 1)
    saver.save(engine, config, 1)
    return masters_of(engine), weights_of(engine)


def masters_loaded(config, path):
    engine = Engine(config, start(config))
    checkpoint.load_weights(engine, path)
    return masters_of(engine), weights_of(engine)


@pytest.mark.parametrize(
    ("before", "after", "layout", "more"),
    [
        ("bf16", "bf16", "tp2-ep2", ()),
        ("bf16", "fp32", "dp2", ()),
        ("fp32", "bf16", "pp2-vpp2", ()),
        pytest.param("bf16", "bf16", "dp2", (), marks=pytest.mark.slow),
        pytest.param("bf16", "bf16", "one", ("optim.distributed=false",), marks=pytest.mark.slow),
    ],
)
def test_a_new_stage_starts_from_the_float32_weights_of_the_one_before(
    tmp_path, before, after, layout, more
):
    config, changed = (
        settings(tmp_path, "tiny-moe", layout, f"train.precision={precision}", *more)
        for precision in (before, after)
    )
    saved = run_ranks(masters_saved, LAYOUTS[layout][0], config)
    path = checkpoint.find(str(config.run_dir))
    loaded = run_ranks(masters_loaded, LAYOUTS[layout][0], changed, path)
    for (old, _), (new, _) in zip(saved, loaded, strict=True):
        assert all(map(torch.equal, new, old)) and len(new) == len(old) > 4
        assert any((tensor != tensor.bfloat16()).any() for tensor in new)
    whole = assemble([shards for _, shards in saved])
    for name, weight in assemble([shards for _, shards in loaded]).items():
        assert torch.equal(weight.bfloat16(), whole[name].bfloat16()), name


def save_three(config):
    """Before the first step: a checkpoint needs no trained optimizer."""
    engine = Engine(config, start(config))
    for step in (1, 2, 3):
        saver.save(engine, config, step)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    config = settings(tmp_path, "tiny-dense", "one", "checkpoint.keep=2")
    run_ranks(save_three, 1, config)
    assert [checkpoint.step_of(c) for c in checkpoint.checkpoints(config.run_dir)] == [2, 3]


def test_a_half_written_checkpoint_is_not_found(tmp_path):
    (tmp_path / "checkpoints" / "step_00000004.partial").mkdir(parents=True)
    assert checkpoint.checkpoints(tmp_path) == []
    with pytest.raises(ConfigError, match="neither a checkpoint nor a run folder"):
        checkpoint.find(str(tmp_path))


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path, monkeypatch):
    config = settings(tmp_path, "tiny-dense", "one")
    run_ranks(save_three, 1, config)
    path = checkpoint.find(str(Path(config.run_dir)))
    wider = settings(tmp_path, "tiny-dense", "one", "model.ffn_hidden_size=256")
    with pytest.raises(ConfigError, match=r"model.ffn_hidden_size = 256.*saved with 192"):
        checkpoint.check_same_model(wider, path)
    for free in ("model.rope_theta=5", "model.router_balance=this_batch"):
        checkpoint.check_same_model(settings(tmp_path, "tiny-dense", "one", free), path)
    for folder, source in ((path.parent, path.name), (path, ".")):
        monkeypatch.chdir(folder)
        stage = (f"checkpoint.init_from={source}", "run.name=next")
        before = origin.check(settings(tmp_path, "tiny-dense", "one", *stage)).before
        assert before == (Path(config.run_dir), 3)
