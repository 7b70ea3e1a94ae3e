"""FP8 in the trainer: losses near bf16's, runs that go on to the bit, and from and to bf16.

Transformer Engine's Python is real, with its recipes, histories and padding; the products of its
kernels are stood in by float32 products of numbers rounded to FP8.
"""

import numpy as np
import pytest
import torch

from data_prep.indexed import IndexedWriter
from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.generate.engine import Generator
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.mcore import is_float8tensor
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training import checkpoint, saver
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy
from tests.ranks import RankError
from tests.runs import told_by
from tests.shards import assemble, local_shards
from tests.te.te_ranks import run_te_ranks

SEQUENCES, POSITIONS, VOCABULARY = 8, 32, 512  # in two micro-batches
ENDS = ("fp8.first_layers_bf16=1", "fp8.last_layers_bf16=1")
TP2, EP2 = "parallel.tensor=2", "parallel.expert=2"


def config_of(preset, *settings):
    base = [
        f"model.preset={preset}",
        "model.kind=te",
        "run.device=cpu",
        "train.steps=99",
        f"train.global_batch={SEQUENCES}",
        "train.micro_batch=4",
        f"data.sequence_length={POSITIONS}",
    ]
    return load([], [*base, *settings])


def batch_of(step, engine, positions=POSITIONS):
    """Rows that count by 1, 2 or 3: something to learn within a few steps."""
    rows = SEQUENCES // engine.layout.data
    generator = torch.Generator().manual_seed(step)
    first = torch.randint(VOCABULARY, (SEQUENCES, 1), generator=generator)
    stride = torch.randint(1, 4, (SEQUENCES, 1), generator=generator)
    ids = (first + stride * torch.arange(positions + 1)) % VOCABULARY
    mine = ids[engine.data_rank * rows : (engine.data_rank + 1) * rows]
    return TokenBatch.of(mine[:, :-1], mine[:, 1:])


def steps(engine, first, last):
    """(loss, gradient norm) of steps first … last - 1; step s always sees the same batch."""
    found = []
    for step in range(first, last):
        metrics = engine.train_step(batch_of(step, engine), cross_entropy, 1e-3)
        found.append((metrics["loss"], metrics["grad_norm"]))
    return found


def trained(preset, count, settings):
    config = config_of(preset, *settings)
    return steps(Engine(config, start(config)), 0, count)


def runs_of(preset, count, *runs, ranks=1):
    """The steps of each run."""
    return [run_te_ranks(trained, ranks, preset, count, settings)[0] for settings in runs]


def weights_of(engine):
    engine.model.synchronize()
    return local_shards(engine.model.chunks, lambda t: t.dequantize() if is_float8tensor(t) else t)


RUNS = [
    ("tiny-dense", 1, ("tensorwise",)),
    ("tiny-moe", 1, ("delayed", "fp8.history=4")),
    ("tiny-dense", 2, ("tensorwise", "fp8.gather=true")),
    ("tiny-dense", 1, ("delayed",)),
    ("tiny-moe", 1, ("tensorwise", *ENDS)),
    ("tiny-dense", 2, ("tensorwise", "fp8.format=e4m3", TP2)),
    ("tiny-moe", 2, ("tensorwise", "fp8.expert_rows=route", EP2)),
]


def losses_of_both(preset, ranks, recipe, count):
    """In bf16 and in FP8, in the same layout, a step in one micro-batch."""
    layout = [s for s in recipe if s.startswith("parallel.")]
    rows = SEQUENCES // (1 if TP2 in layout else ranks)
    runs = layout, [f"fp8.recipe={recipe[0]}", *recipe[1:]]
    whole = [[f"train.micro_batch={rows}", *settings] for settings in runs]
    wide, low = runs_of(preset, count, *whole, ranks=ranks)
    return [loss for loss, _ in wide], [loss for loss, _ in low]


@pytest.mark.parametrize(("preset", "ranks", "recipe"), RUNS[:3])
def test_losses_follow_those_in_bf16(preset, ranks, recipe):
    wide, low = losses_of_both(preset, ranks, recipe, 8)
    assert low == pytest.approx(wide, rel=5e-3)
    assert all(a != b for a, b in zip(wide, low, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "ranks", "recipe"), RUNS)
def test_losses_follow_those_in_bf16_over_50_steps(preset, ranks, recipe):
    wide, low = losses_of_both(preset, ranks, recipe, 50)
    assert wide[-1] < wide[0] - 0.5  # that they learn
    assert low == pytest.approx(wide, rel=5e-3)
    assert all(a != b for a, b in zip(wide, low, strict=True))


def test_layers_at_the_ends_compute_in_bf16():
    """With all but one in bf16 the first loss is nearer to bf16's than with none."""
    most = ["fp8.recipe=tensorwise", "fp8.first_layers_bf16=2", "fp8.last_layers_bf16=1"]
    runs = runs_of("tiny-dense", 1, [], most, ["fp8.recipe=tensorwise"])
    (((wide, _),), ((ends, _),), ((none, _),)) = runs
    assert 0 < abs(ends - wide) < abs(none - wide)


def test_rows_of_experts_are_filled_up_in_two_ways_that_compute_nearly_the_same():
    """Further tokens of weight 0 count in the scale of an expert by their values alone."""
    runs = [["fp8.recipe=tensorwise", f"fp8.expert_rows={way}"] for way in ("pad", "route")]
    padded, routed = runs_of("tiny-moe", 2, *runs)
    for (loss, norm), (other_loss, other_norm) in zip(padded, routed, strict=True):
        assert other_loss == pytest.approx(loss, rel=3e-4)
        assert other_norm == pytest.approx(norm, rel=1e-2)


def undisturbed(config):
    engine = Engine(config, start(config))
    found = steps(engine, 0, 3)
    saver.save(engine, config, 3)
    return found + steps(engine, 3, 5), weights_of(engine)


def resumed(config, path):
    engine = Engine(config, start(config))
    checkpoint.load(engine, path)
    found = steps(engine, 3, 5)
    checkpoint.load(engine, path)  # a state that goes back to a checkpoint is where it was, too
    assert steps(engine, 3, 5) == found
    return found, weights_of(engine)


@pytest.mark.parametrize(
    ("preset", "settings", "ranks"),
    [
        ("tiny-dense", ("fp8.recipe=delayed", "fp8.history=4", TP2), 2),
        pytest.param(
            *("tiny-moe", ("fp8.recipe=delayed", "fp8.history=4", EP2), 2), marks=pytest.mark.slow
        ),
        pytest.param(*("tiny-moe", ("fp8.recipe=tensorwise", *ENDS), 1), marks=pytest.mark.slow),
        ("tiny-moe", ("fp8.recipe=tensorwise", "fp8.gather=true"), 2),
    ],
)
def test_a_resumed_run_equals_an_undisturbed_one_to_the_bit(tmp_path, preset, settings, ranks):
    config = config_of(preset, f"run.dir={tmp_path}", *settings)
    whole = run_te_ranks(undisturbed, ranks, config)
    (saved,) = checkpoint.checkpoints(config.run_dir)
    again = run_te_ranks(resumed, ranks, config, saved)
    assert again[0][0] == whole[0][0][3:]
    weights = assemble([shards for _, shards in again])
    for name, expected in assemble([shards for _, shards in whole]).items():
        assert torch.equal(weights[name], expected), name


def went_on(config, path):
    """The weights that a run loads, and then its steps."""
    engine = Engine(config, start(config))
    progress = checkpoint.load(engine, path)
    loaded = weights_of(engine)
    found = steps(engine, progress.step, progress.step + 1)
    saver.save(engine, config, progress.step + 1)
    return loaded, weights_of(engine), found


def began(config):
    engine = Engine(config, start(config))
    ((loss, _),) = steps(engine, 0, 1)
    saver.save(engine, config, 1)
    return weights_of(engine), loss


@pytest.mark.parametrize("preset", [pytest.param("tiny-dense", marks=pytest.mark.slow), "tiny-moe"])
def test_a_run_goes_on_in_fp8_and_back_in_bf16_with_the_weights_that_it_had(tmp_path, preset):
    home = f"run.dir={tmp_path}"
    path = config_of(preset, home).run_dir
    ((weights, loss),) = run_te_ranks(began, 1, config_of(preset, home))
    recipes = ["delayed", "tensorwise", "none", "delayed"]
    kinds = ["te", "te", "torch", "te"]
    for recipe, kind in zip(recipes, kinds, strict=True):
        config = config_of(preset, home, f"fp8.recipe={recipe}", f"model.kind={kind}")
        newest = checkpoint.newest(path)
        ((loaded, after, found),) = run_te_ranks(went_on, 1, config, newest)
        before, loaded = (assemble([shards]) for shards in (weights, loaded))
        assert all(torch.equal(loaded[name], before[name]) for name in before)
        assert abs(found[0][0] - loss) < 0.2  # no jump
        weights, loss = after, found[0][0]


def test_a_run_in_float32_does_not_go_on_in_fp8(tmp_path):
    home = f"run.dir={tmp_path}"
    wide = config_of("tiny-dense", home, "train.precision=fp32", "model.kind=torch")
    run_te_ranks(began, 1, wide)
    low = config_of("tiny-dense", home, "fp8.recipe=tensorwise")
    with pytest.raises(ConfigError, match=r'train.precision = "bf16", but .* checkpoint.init_from'):
        checkpoint.check_same_run(low, checkpoint.newest(low.run_dir))


def scored_and_written(preset, recipe):
    """Log-probabilities by the layers in FP8, and tokens by those in bf16."""
    config = config_of(preset, f"fp8.recipe={recipe}", "model.init_std=0.15")
    engine = Engine(config, start(config))
    batch = batch_of(0, engine)
    scored = engine.model.score(batch, log_probs)["log_prob"]
    generator = Generator(engine.model)
    written = generator.generate([[1, 2, 3], [4]], Sampling(temperature=0), 5)
    engine.train_step(batch, cross_entropy, 1e-3)
    again = engine.model.score(batch, log_probs)["log_prob"]
    return scored, [answer.tokens for answer in written], again


@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_scores_are_in_fp8_and_of_the_weights_of_now_and_texts_are_written_in_bf16(preset):
    wide, low = (run_te_ranks(scored_and_written, 1, preset, r)[0] for r in ("none", "tensorwise"))
    assert low[1] == wide[1]
    assert not torch.equal(low[0], wide[0])
    moved = (wide[2] - wide[0]).norm()
    assert (low[2] - low[0]).norm() == pytest.approx(moved.item(), rel=0.3)


def trained_and_read(preset, settings, reads):
    config = config_of(preset, *settings)
    engine = Engine(config, start(config))
    found = steps(engine, 0, 2)
    if reads:
        batch = batch_of(5, engine)
        strange = TokenBatch.of(batch.tokens_BS.flip(1), batch.labels_BS)
        engine.model.score(strange, log_probs)
    return found + steps(engine, 2, 4)


@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_what_is_only_read_sets_no_scale_of_what_is_trained(preset):
    recipe = ("fp8.recipe=delayed", "fp8.history=4", "model.init_std=0.2")
    read, alone = (run_te_ranks(trained_and_read, 1, preset, recipe, x)[0] for x in (True, False))
    assert read == alone


def of_length(positions):
    config = config_of("tiny-dense", "fp8.recipe=tensorwise")
    engine = Engine(config, start(config))
    engine.train_step(batch_of(0, engine, positions), cross_entropy, 1e-3)


def test_rows_that_fp8_cannot_multiply_are_told():
    with pytest.raises(
        RankError, match="rows of 24 positions are no multiple of 16, which fp8.rec"
    ):
        run_te_ranks(of_length, 1, 24)


def test_a_run_says_how_it_multiplies_and_goes_on(tmp_path):
    with IndexedWriter(tmp_path / "counts", np.uint16) as writer:
        for first in range(60):
            writer.add_document((first + np.arange(48)) % VOCABULARY)
    settings = [
        "model.preset=tiny-dense",
        "model.kind=te",
        "run.device=cpu",
        f"run.dir={tmp_path}",
        "data.held_out=0.1",
        f'data.sources=[{{name="counts", path="{tmp_path}/counts"}}]',
        f"data.sequence_length={POSITIONS}",
        "train.global_batch=2",
        "log.tensorboard=false",
    ]
    low = [*settings, "fp8.recipe=delayed", "fp8.history=4", "train.steps=2"]
    ((status, told),) = run_te_ranks(told_by, 1, low)
    assert status == 0 and "products of layers: delayed (hybrid)" in told, told
    low = [*settings, "fp8.recipe=tensorwise", "train.steps=3"]
    ((status, told),) = run_te_ranks(told_by, 1, low)
    assert status == 0 and "products of layers: tensorwise (hybrid)" in told, told
    wide = [*settings, "train.steps=4", "train.precision=fp32"]
    ((status, told),) = run_te_ranks(told_by, 1, wide)
    assert status == 2 and 'train.precision = "fp32", but' in told, told
