"""Checkpoints hold the same bits whichever kind of layers wrote or read them, optimizer and all.

A chain: torch's layers save, Transformer Engine's load and save, in another layout, torch's load.
"""

import pytest
import torch

from megatron_qwen3.convert import stream
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.rollouts.gather import Gathered
from megatron_qwen3.training import checkpoint, saver, shards
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model
from tests.parallel.test_checkpoint import LAYOUTS, settings, steps, undisturbed, weights_of
from tests.parity.test_convert import assert_same_bits, transformers_model
from tests.ranks import run_ranks
from tests.shards import assemble
from tests.te.te_ranks import run_te_ranks


def _passed_on(config, path):
    """Load, and save at once."""
    engine = Engine(config, start(config))
    checkpoint.load(engine, path)
    saver.save(engine, config, 2)


def _held(config, path):
    """All tensors of a checkpoint as one rank has them: weights, moments and masters."""
    engine = Engine(config, start(config))
    checkpoint.load(engine, path)
    entries = shards.optimizer_template(engine).values()
    state = {f"{e.key} {e.global_offset} {number}": e.data for number, e in enumerate(entries)}
    return assemble([weights_of(engine)]) | {name: x.clone() for name, x in state.items()}


@pytest.mark.parametrize(
    ("preset", "layout", "more"),
    [
        ("tiny-dense", "tp2-pp2", ()),
        ("tiny-moe", "tp2-ep2", ("train.precision=bf16",)),
        pytest.param("tiny-moe", "etp2", (), marks=pytest.mark.slow),
        pytest.param("tiny-dense", "dp2", ("train.precision=bf16",), marks=pytest.mark.slow),
    ],
)
def test_weights_and_optimizer_pass_through_either_kind_unchanged(tmp_path, preset, layout, more):
    one = settings(tmp_path / "torch", preset, "one", *more)
    run_ranks(undisturbed, 1, one)
    (saved,) = checkpoint.checkpoints(one.run_dir)
    te = settings(tmp_path / "te", preset, layout, "model.kind=te", *more)
    run_te_ranks(_passed_on, LAYOUTS[layout][0], te, saved)
    (passed_on,) = checkpoint.checkpoints(te.run_dir)
    first, second = (run_ranks(_held, 1, one, path)[0] for path in (saved, passed_on))
    assert first.keys() == second.keys() and any("exp_avg_sq" in name for name in first)
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name


def _resumed(config, path):
    engine = Engine(config, start(config))
    checkpoint.load(engine, path)
    return steps(engine, 2, 5)


@pytest.mark.parametrize("preset", [pytest.param("tiny-dense", marks=pytest.mark.slow), "tiny-moe"])
def test_a_run_goes_on_with_the_other_kind_of_layers_and_its_own_losses(tmp_path, preset):
    config = settings(tmp_path / "torch", preset, "one")
    ((losses, _),) = run_ranks(undisturbed, 1, config)
    (saved,) = checkpoint.checkpoints(config.run_dir)
    te = settings(tmp_path / "te", preset, "one", "model.kind=te")
    assert run_te_ranks(_resumed, 1, te, saved)[0] == pytest.approx(losses[2:], rel=1e-6)
    ((losses_te, _),) = run_te_ranks(undisturbed, 1, te)
    assert losses_te == pytest.approx(losses, rel=1e-6)
    (saved,) = checkpoint.checkpoints(te.run_dir)
    assert run_ranks(_resumed, 1, config, saved)[0] == pytest.approx(losses[2:], rel=1e-6)


def _gathered(config):
    """Hugging Face's tensors of fresh weights, on the first rank."""
    model = Model(config, start(config))
    buckets = Gathered(model).buckets(1 << 20)
    return {name: tensor.clone() for bucket in buckets for name, tensor in bucket.tensors.items()}


@pytest.mark.parametrize(
    ("preset", "layout"),
    [("tiny-moe", "tp2-ep2"), pytest.param("tiny-dense", "tp2-pp2", marks=pytest.mark.slow)],
)
def test_fresh_weights_are_those_of_torchs_layers_and_servers_get_them(tmp_path, preset, layout):
    (expected,) = run_ranks(_gathered, 1, settings(tmp_path, preset, "one"))
    te = settings(tmp_path, preset, layout, "model.kind=te")
    gathered = run_te_ranks(_gathered, LAYOUTS[layout][0], te)[0]
    assert gathered.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(gathered[name], tensor), name


def _through(config, path):
    engine = Engine(config, start(config))
    checkpoint.load_weights(engine, path)
    saver.save(engine, config, 1)


@pytest.mark.parametrize(
    ("name", "layout"), [("dense-tied", "tp2-pp2"), ("moe-4-groups", "tp2-ep2")]
)
def test_hugging_faces_weights_pass_through_transformer_engine_unchanged(tmp_path, name, layout):
    source = transformers_model(tmp_path / "hf", name, torch.float32)
    model = {"moe-4-groups": ("model.num_attention_heads=8", "model.num_query_groups=4")}
    preset = "tiny-moe" if name.startswith("moe") else "tiny-dense"
    config = settings(tmp_path, preset, layout, "model.kind=te", *model.get(name, ()))
    run_te_ranks(_through, LAYOUTS[layout][0], config, source)
    stream.to_hf(checkpoint.find(str(config.run_dir)), tmp_path / "out")
    assert_same_bits(tmp_path / "out", source)
