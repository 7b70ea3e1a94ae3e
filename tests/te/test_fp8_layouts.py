"""FP8 with layers that are computed again, pipeline and context ranks, and packed documents.

As test_fp8.py: losses near those in bf16 of the same layout, and runs that go on to the bit.
Recomputed activations are compared with kept ones. Kernels are stood in.
"""

from dataclasses import dataclass

import pytest
import torch

from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training import checkpoint, saver
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy
from tests.shards import assemble
from tests.te.te_ranks import run_te_ranks
from tests.te.test_fp8 import POSITIONS, batch_of, config_of, weights_of

DELAYED, TENSORWISE = ("delayed", "fp8.history=4"), ("tensorwise",)
FULL, SELECTIVE = "recompute=full", "recompute=selective"


@dataclass(frozen=True)
class Case:
    """A recipe in a layout; `parallel` are settings of that table. Rows of a step share documents
    where they are packed."""

    preset: str
    recipe: tuple[str, ...]
    parallel: str
    ranks: int = 1
    packed: bool = False
    micro_batch: int = 4

    @property
    def layout(self):
        parallel = (f"parallel.{setting}" for setting in self.parallel.split())
        return [*parallel, f"train.micro_batch={self.micro_batch}"]

    @property
    def fp8(self):
        return [f"fp8.recipe={self.recipe[0]}", *self.recipe[1:]]

    def __str__(self):
        parts = (self.preset, self.recipe[0], *self.parallel.split(), "packed" * self.packed)
        return "-".join(filter(None, parts))


VPP2 = "pipeline=2 virtual_pipeline=2"
GATHERED = "context=2 context_exchange=all_gather"
CASES = (
    Case("tiny-dense", DELAYED, FULL),
    Case("tiny-dense", DELAYED, f"{VPP2} {FULL}", 2),
    Case("tiny-dense", TENSORWISE, "context=2", 2),
    Case("tiny-moe", DELAYED, f"{GATHERED} expert=2", 2, packed=True),
)
SLOW_CASES = (
    Case("tiny-dense", TENSORWISE, "", packed=True),
    Case("tiny-dense", DELAYED, "", packed=True),
    Case("tiny-dense", TENSORWISE, FULL),
    Case("tiny-dense", TENSORWISE, SELECTIVE, packed=True),
    Case("tiny-moe", DELAYED, SELECTIVE),
    Case("tiny-moe", TENSORWISE, FULL, packed=True),
    Case("tiny-moe", DELAYED, f"expert=2 {FULL}", 2, packed=True),
    Case("tiny-dense", TENSORWISE, f"tensor=2 {SELECTIVE}", 2),
    Case("tiny-dense", DELAYED, "pipeline=2", 2, packed=True),
    Case("tiny-dense", TENSORWISE, f"pipeline=2 {FULL}", 2),
    Case("tiny-moe", TENSORWISE, f"{VPP2} expert=2", 4, micro_batch=2),
    Case("tiny-moe", DELAYED, f"{VPP2} {SELECTIVE}", 2, packed=True),
    Case("tiny-dense", DELAYED, f"context=2 {FULL}", 2, packed=True),
    Case("tiny-moe", TENSORWISE, "context=2 expert=2", 2, packed=True),
    Case("tiny-dense", TENSORWISE, f"{GATHERED} {FULL}", 2),
    Case("tiny-dense", DELAYED, f"{GATHERED} pipeline=2", 4, packed=True),
    Case("tiny-moe", TENSORWISE, f"{GATHERED} tensor=2 {SELECTIVE}", 4, packed=True),
)


def of_every(fast, slow):
    return pytest.mark.parametrize(
        "case", [*fast, *(pytest.param(case, marks=pytest.mark.slow) for case in slow)], ids=str
    )


def steps(engine, first, last, packed):
    """(loss, gradient norm) of each; step s always sees the same batch."""
    found = []
    for step in range(first, last):
        batch = batch_of(step, engine)
        if packed:
            starts = [[0, 3 + row, 20 + row] for row in range(batch.rows)]
            cut = Stretches.of([[0], *starts[1:]], POSITIONS)
            batch = type(batch).of(batch.tokens_BS, batch.labels_BS, cut)
        metrics = engine.train_step(batch, cross_entropy, 1e-3)
        found.append((metrics["loss"], metrics["grad_norm"]))
    return found


def trained(configs, count, packed):
    """Of each: its steps, in processes of one layout, and how many kernels these took."""
    from tests.te import stand_in

    layout, found, kernels = start(configs[0]), [], []
    for config in configs:
        before = stand_in.calls.total()
        found.append(steps(Engine(config, layout), 0, count, packed))
        kernels.append(stand_in.calls.total() - before)
    return found, kernels


def run(case, *runs, count):
    """The first rank's results of each run, with further settings; kernels of each."""
    configs = [config_of(case.preset, *case.layout, *settings) for settings in runs]
    fused = "context_exchange" in case.parallel
    function, of_all = trained, (configs, count, case.packed)
    return run_te_ranks(function, case.ranks, *of_all, fused_attention=fused)[0]


def assert_near(wide, low):
    wide, low = ([loss for loss, _ in found] for found in (wide, low))
    assert low == pytest.approx(wide, rel=5e-3)
    assert all(a != b for a, b in zip(wide, low, strict=True))


@of_every(CASES, SLOW_CASES)
def test_losses_follow_those_in_bf16(case):
    (wide, low), _ = run(case, [], case.fp8, count=8)
    assert_near(wide, low)


@pytest.mark.slow
@of_every((CASES[1], CASES[3], SLOW_CASES[4]), ())
def test_losses_follow_those_in_bf16_over_50_steps(case):
    (wide, low), _ = run(case, [], case.fp8, count=50)
    assert wide[-1][0] < wide[0][0] - 0.5  # that they learn
    assert_near(wide, low)


@pytest.mark.parametrize(
    ("preset", "recipe"),
    [
        ("tiny-dense", "delayed"),
        ("tiny-moe", "tensorwise"),
        pytest.param("tiny-moe", "delayed", marks=pytest.mark.slow),
    ],
)
def test_what_is_computed_again_is_what_was_computed(preset, recipe):
    """To the bit, also by scales that later micro-batches have changed since."""
    case = Case(preset, (recipe,), "")
    ways = ("none", "full", "selective")
    asked = ([*case.fp8, f"parallel.recompute={way}"] for way in ways)
    (kept, full, selective), kernels = run(case, *asked, count=3)
    assert full == kept and selective == kept
    assert kernels[1] > kernels[2] > kernels[0]


def undisturbed(config, packed):
    engine = Engine(config, start(config))
    found = steps(engine, 0, 3, packed)
    saver.save(engine, config, 3)
    return found + steps(engine, 3, 5, packed), weights_of(engine)


def resumed(config, path, packed):
    engine = Engine(config, start(config))
    checkpoint.load(engine, path)
    return steps(engine, 3, 5, packed), weights_of(engine)


RESUMED = (
    Case("tiny-dense", DELAYED, f"{VPP2} {FULL}", 2, packed=True),
    Case("tiny-moe", DELAYED, f"{GATHERED} expert=2 {SELECTIVE}", 2, packed=True),
)
SLOW_RESUMED = (
    Case("tiny-dense", DELAYED, f"context=2 {SELECTIVE}", 2),
    Case("tiny-moe", TENSORWISE, f"{VPP2} {FULL}", 2),
    Case("tiny-moe", DELAYED, f"pipeline=2 expert=2 {FULL}", 4, packed=True),
)


@of_every(RESUMED, SLOW_RESUMED)
def test_a_resumed_run_equals_an_undisturbed_one_to_the_bit(tmp_path, case):
    config = config_of(case.preset, f"run.dir={tmp_path}", *case.layout, *case.fp8)
    fused = {"fused_attention": "context_exchange" in case.parallel}
    whole = run_te_ranks(undisturbed, case.ranks, config, case.packed, **fused)
    (saved,) = checkpoint.checkpoints(config.run_dir)
    again = run_te_ranks(resumed, case.ranks, config, saved, case.packed, **fused)
    assert again[0][0] == whole[0][0][3:]
    weights = assemble([shards for _, shards in again])
    for name, expected in assemble([shards for _, shards in whole]).items():
        assert torch.equal(weights[name], expected), name
