"""The table of layouts, the training of a case, and how its ranks are compared with one rank.

tests/parallel runs it on gloo ranks, tests/gpu the same rows on GPUs. A case trains three steps
from the same weights on the same global batches, twice in the same processes: once with plain
gradients, which every rank holds whole and can be compared, and a ragged loss mask; once with
clipping and with the optimizer's state sharded.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from shards import assemble, difference, local_shards

from megatron_qwen3.config import load
from megatron_qwen3.model.outputs import log_probs, scalar
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.rows.bradley_terry import over_pairs
from megatron_qwen3.posttrain.rows.pair_rows import MARGIN, REJECTED
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.checkpoint import load_weights
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy
from megatron_qwen3.training.saver import save

RATE, _CONTEXT = 1e-4, "parallel.context="
STEPS, SEQUENCES, POSITIONS, VOCABULARY = 3, 8, 32, 512
YARN = ("rope.yarn_factor=4", "rope.yarn_original_length=8")
MODELS = {
    "dense": ("model.preset=tiny-dense",),
    "dense-untied": ("model.preset=tiny-dense", "model.tie_embeddings=false"),
    "dense-8-layers": ("model.preset=tiny-dense", "model.num_layers=8"),
    "moe": ("model.preset=tiny-moe",),
    "moe-tied": ("model.preset=tiny-moe", "model.tie_embeddings=true"),
    "dense-dca": (
        "model.preset=tiny-dense",
        "rope.dca_chunk_size=24",
        "rope.dca_local_size=8",
    ),
    "dense-yarn": ("model.preset=tiny-dense", *YARN),
    "moe-yarn": ("model.preset=tiny-moe", *YARN),
    "dense-scalar": ("model.preset=tiny-dense", "run.mode=reward"),
    "moe-scalar": ("model.preset=tiny-moe", "run.mode=reward"),
}
# A balance loss large enough that its part of the gradient cannot hide behind cross-entropy's.
PLAIN = ("optim.distributed=false", "optim.clip_grad=0.0", "model.router_aux_loss=0.1")
SHARDED = ("optim.distributed=true", "optim.clip_grad=0.5")


@dataclass(frozen=True)
class Case:
    """One layout of one model; `parallel` are settings of that table."""

    model: str
    name: str
    ranks: int
    parallel: str = ""
    micro_batch: int = 1

    @property
    def settings(self):
        return (
            *MODELS[self.model],
            *(f"parallel.{setting}" for setting in self.parallel.split()),
            f"train.micro_batch={self.micro_batch}",
        )


CASES = (
    Case("dense", "dp2", 2),
    Case("dense", "tp2", 2, "tensor=2", 2),
    Case("dense", "tp2-without-sequence", 2, "tensor=2 sequence=false", 2),
    Case("dense", "pp2-uneven", 2, "pipeline=2 pipeline_layers=[3,1]", 2),
    Case("dense", "pp2-vpp2", 2, "pipeline=2 virtual_pipeline=2", 2),
    Case("dense", "recompute-full", 1, "recompute=full", 4),
    Case("moe", "etp2", 2, "tensor=2 expert_tensor=2", 2),
    Case("moe", "ep2", 2, "expert=2 recompute=full", 2),
    Case("moe", "tp2-ep2", 2, "tensor=2 expert=2 recompute=selective", 2),
    Case("moe", "pp2-vpp2", 2, "pipeline=2 virtual_pipeline=2", 2),
    Case("moe", "tp2-pp2-ep2", 4, "tensor=2 pipeline=2 expert=2", 2),
    Case("dense", "cp2", 2, "context=2", 2),
    Case("moe", "cp2-ep2", 2, "context=2 expert=2", 2),
)
SLOW_CASES = (
    Case("moe", "dp2", 2),
    Case("dense-untied", "tp2-pp2", 4, "tensor=2 pipeline=2 recompute=selective", 2),
    Case("dense", "pp2", 2, "pipeline=2"),
    Case("moe", "tp2", 2, "tensor=2", 2),
    Case("dense-dca", "cp2", 2, "context=2"),
    Case("moe", "cp2-tp2", 4, "context=2 tensor=2", 2),
    Case("moe", "tp2-pp2-ep2-dp2", 8, "tensor=2 pipeline=2 expert=2"),
    Case("moe-tied", "tp2-pp2", 4, "tensor=2 pipeline=2 recompute=full", 2),
    Case("moe", "etp2-ep2", 4, "tensor=2 expert=2 expert_tensor=2", 2),
    Case("dense", "pp3-uneven", 3, "pipeline=3 pipeline_layers=[1,2,1]"),
    Case("dense", "dp4", 4),
    Case("dense", "one-micro-batch", 1, micro_batch=8),
    Case("dense", "recompute-selective", 1, "recompute=selective"),
    Case("dense", "tp2-dp2", 4, "tensor=2"),
    Case("dense", "tp2-recompute-full", 2, "tensor=2 recompute=full"),
    Case("dense", "pp4", 4, "pipeline=4"),
    Case("dense", "tp2-pp2-dp2", 8, "tensor=2 pipeline=2"),
    Case("dense-8-layers", "pp4-vpp2", 4, "pipeline=4 virtual_pipeline=2"),
    Case(
        "dense-8-layers",
        "pp2-vpp2-uneven",
        2,
        "pipeline=2 virtual_pipeline=2 pipeline_layers=[1,3,2,2]",
    ),
    Case("dense-untied", "pp2-vpp2-dp2", 4, "pipeline=2 virtual_pipeline=2"),
    Case("moe", "recompute-full", 1, "recompute=full"),
    Case("moe", "tp2-dp2", 4, "tensor=2"),
    Case("moe", "tp2-ep2-dp2", 4, "tensor=2 expert=2"),
    Case("moe", "tp2-ep4", 4, "tensor=2 expert=4"),
    Case("moe", "ep8", 8, "expert=8"),
    Case("moe", "ep2-dp2", 4, "expert=2"),
    Case("moe", "etp2-without-tp", 2, "expert_tensor=2"),
    Case("moe", "etp2-pp2-ep2", 8, "tensor=2 pipeline=2 expert=2 expert_tensor=2"),
    Case("moe", "pp2-ep2-recompute-full", 4, "pipeline=2 expert=2 recompute=full"),
    Case("dense-yarn", "tp2-pp2", 4, "tensor=2 pipeline=2 recompute=full", 2),
    Case("moe-yarn", "tp2-ep2", 2, "tensor=2 expert=2 recompute=selective", 2),
    Case("moe-tied", "pp2-vpp2-tp2", 4, "tensor=2 pipeline=2 virtual_pipeline=2"),
    Case("dense", "cp4", 4, "context=4 recompute=full"),
    Case("dense", "cp2-recompute-selective", 2, "context=2 recompute=selective", 2),
    Case("dense", "cp2-tp2", 4, "context=2 tensor=2"),
    Case("dense", "cp2-tp2-without-sequence", 4, "context=2 tensor=2 sequence=false", 2),
    Case("dense", "cp2-pp2", 4, "context=2 pipeline=2", 2),
    Case("dense", "cp2-pp2-vpp2", 4, "context=2 pipeline=2 virtual_pipeline=2"),
    Case("dense", "cp2-dp2", 4, "context=2"),
    Case("dense-dca", "cp2-tp2-pp2", 8, "context=2 tensor=2 pipeline=2 recompute=full"),
    Case("moe", "cp2", 2, "context=2 recompute=full", 2),
    Case("moe", "cp4", 4, "context=4"),
    Case("moe", "cp2-pp2-ep2", 4, "context=2 pipeline=2 expert=2"),
    Case("moe", "cp2-dp2-ep2", 4, "context=2 expert=2"),
    Case("moe", "cp2-tp2-ep4", 4, "context=2 tensor=2 expert=4 recompute=selective"),
)
SCALAR_CASES = (
    Case("dense-scalar", "dp2", 2, micro_batch=2),
    Case("dense-scalar", "tp2", 2, "tensor=2", 2),
    Case("dense-scalar", "pp2-vpp2", 2, "pipeline=2 virtual_pipeline=2", 2),
    Case("moe-scalar", "tp2-ep2", 2, "tensor=2 expert=2 recompute=selective", 2),
)
SLOW_SCALAR_CASES = (
    Case("dense-scalar", "tp2-without-sequence", 2, "tensor=2 sequence=false", 2),
    Case("moe-scalar", "tp2-pp2", 4, "tensor=2 pipeline=2 recompute=full", 2),
    Case("dense-scalar", "dp4", 4),
    Case("dense-scalar", "one-micro-batch", 1, micro_batch=8),
    Case("dense-scalar", "tp2-pp2-dp2", 8, "tensor=2 pipeline=2"),
    Case("dense-scalar", "cp2", 2, "context=2", 2),
    Case("moe-scalar", "ep2-dp2", 4, "expert=2"),
    Case("moe-scalar", "etp2-ep2", 4, "tensor=2 expert=2 expert_tensor=2", 2),
    Case("moe-scalar", "tp2-pp2-ep2", 8, "tensor=2 pipeline=2 expert=2"),
)


def cases(quick, slow=()):
    marked = [pytest.param(case, marks=pytest.mark.slow) for case in slow]
    name = lambda case: f"{case.model}-{case.name}"  # noqa: E731
    return pytest.mark.parametrize("case", [*quick, *marked], ids=name)


@functools.cache
def one_rank(model):
    """Both runs on one rank, in two micro-batches."""
    settings = (*MODELS[model], "train.micro_batch=4")
    return run_ranks(train, 1, (*settings, *PLAIN), (*settings, *SHARDED))[0]


def of_an_update(settings):
    """Settings of an update by answers. Who samples them takes whole rows, or servers that want
    longer ones; an update takes neither, so its ranks may share any."""
    context = [int(one.partition("=")[2]) for one in settings if one.startswith(_CONTEXT)]
    config = load([], [one for one in settings if not one.startswith(_CONTEXT)])
    return replace(config, parallel=replace(config.parallel, context=max(context, default=1)))


def train(*settings_of_runs):
    """On every rank: metrics and weights of each run's steps."""
    configs = [tiny(*settings) for settings in settings_of_runs]
    layout = start(configs[0])
    return [train_once(config, layout) for config in configs]


def tiny(*settings):
    # Adam divides by |gradient| + eps. Where a gradient is nothing but rounding (a token that only
    # stands where nothing is trained), the usual eps of 1e-8 makes whole updates of it.
    base = ["train.precision=fp32", f"train.global_batch={SEQUENCES}", "optim.eps=1e-6"]
    return load([], [*base, f"train.steps={STEPS}", f"data.sequence_length={POSITIONS}", *settings])


def saved_fresh(folder, *settings):
    """On one rank: the path of a checkpoint of the weights that all runs of a model begin with.

    A GPU's generator draws others than a CPU's: to be compared, both begin with these.
    """
    config = tiny(*settings, f"run.dir={folder}")
    layout = Layout.of(config, 1) if torch.distributed.is_initialized() else start(config)
    return str(save(Engine(config, layout), config, 0))


def train_once(config, layout):
    engine = Engine(config, layout)
    if config.checkpoint.init_from:
        load_weights(engine, Path(config.checkpoint.init_from))
    rows = SEQUENCES // layout.data
    whole_gradients = not config.optim.distributed
    is_scalar = config.model.head == "scalar"
    make = pair_batches if is_scalar else global_batches
    objective = over_pairs(centering=0.1) if is_scalar else cross_entropy
    head, name = (scalar, "scalar") if is_scalar else (log_probs, "log_prob")
    batches = [list(b.split(rows))[engine.data_rank] for b in make(ragged=whole_gradients)]
    # Fewer sequences than in a step, so that the last micro-batch is not full.
    first = max(1, rows - 1)
    scored = TokenBatch.of(batches[0].tokens_BS[:first], batches[0].labels_BS[:first])
    result = {
        "first_row": engine.data_rank * rows,
        "scores": engine.model.score(scored, head)[name].cpu(),
        "gradients": [],
    }
    result["metrics"] = []
    for batch in batches:
        metrics = engine.train_step(batch, objective, RATE)
        # A GPU's memory depends on the layout, and a CPU does not report it.
        reported = {name: x for name, x in metrics.items() if not name.startswith("memory_")}
        result["metrics"].append(reported)
        if whole_gradients:
            result["gradients"].append(
                local_shards(engine.model.chunks, lambda p: getattr(p, "main_grad", None))
            )
    engine.model.synchronize()
    return result | {"weights": local_shards(engine.model.chunks, lambda p: p)}


def global_batches(ragged):
    """The batch of each step; ragged rows train differently many positions."""
    random = torch.Generator().manual_seed(7)
    for step in range(STEPS):
        ids = torch.randint(0, VOCABULARY, (SEQUENCES, POSITIONS + 1), generator=random)
        weights, stretches = torch.ones(SEQUENCES, POSITIONS), None
        if ragged:
            weights = torch.rand(weights.shape, generator=random)
            left_out_of_row = torch.rand((SEQUENCES, 1), generator=random)
            weights[torch.rand(weights.shape, generator=random) < left_out_of_row] = 0
            weights[5] = 0
            weights[6, : POSITIONS // 4] = weights[6, -POSITIONS // 4 :] = 0  # of a context rank
        if step:
            stretches = documents(random)
        yield TokenBatch(ids[:, :-1], ids[:, 1:], weights, stretches)


def documents(random):
    """Rows of one document, of many, and of some of one token."""
    starts = [[0], [0, 1, 2, 7], [0, POSITIONS - 1], list(range(0, POSITIONS, 4))]
    for _ in range(SEQUENCES - len(starts)):
        cuts = 1 + torch.randperm(POSITIONS - 1, generator=random)[:3].sort().values
        starts.append([0, *cuts.tolist()])
    return Stretches.of(starts, POSITIONS)


def pair_batches(ragged):
    """Rows of two pairs of answers each; ragged rows have padding, and one row has no pair."""
    random = torch.Generator().manual_seed(8)
    for _ in range(STEPS):
        ids = torch.randint(0, VOCABULARY, (SEQUENCES, POSITIONS), generator=random)
        weights, margins = torch.zeros(2, SEQUENCES, POSITIONS)
        rejected = torch.zeros(SEQUENCES, POSITIONS, dtype=torch.int64)
        starts = []
        for row in range(SEQUENCES):
            cuts = 1 + torch.randperm(POSITIONS - 1, generator=random)[:4].sort().values
            starts.append([0, *cuts.tolist()])  # the fifth stretch is padding
            for chosen_end, rejected_end in (cuts[:2] - 1, cuts[2:] - 1):
                weights[row, chosen_end] = 1 if not ragged else torch.rand((), generator=random)
                margins[row, chosen_end] = torch.rand((), generator=random)
                rejected[row, chosen_end] = rejected_end
        valid = torch.ones(SEQUENCES, POSITIONS, dtype=torch.bool)
        if ragged:
            weights[5] = 0
            valid = torch.arange(POSITIONS) < torch.tensor([row[-1] for row in starts])[:, None]
        extra = {REJECTED: rejected, MARGIN: margins}
        yield TokenBatch(ids, ids, weights, Stretches.of(starts, POSITIONS), valid, extra)


def trained(case):
    """Both runs of a case: the results of each of its ranks."""
    settings = [(*case.settings, *PLAIN), (*case.settings, *SHARDED)]
    return run_ranks(train, case.ranks, *settings)


def assert_same_runs(runs_of_ranks, expected_runs):
    """`runs_of_ranks`: of each rank its runs, as `train` gives them; `expected_runs`: of one."""
    for ranks, expected in zip(zip(*runs_of_ranks, strict=True), expected_runs, strict=True):
        assert_same_metrics(ranks, expected["metrics"])
        assert_same_scores(ranks, expected["scores"])
        for step, gradients in enumerate(expected["gradients"]):
            assert_same([rank["gradients"][step] for rank in ranks], gradients, f"step {step}")
        assert_same([rank["weights"] for rank in ranks], expected["weights"], "weights")


def assert_same_metrics(ranks, expected):
    for rank, run in enumerate(ranks):
        assert run["metrics"] == ranks[0]["metrics"], f"rank {rank} reports other metrics"
    for actual, step in zip(ranks[0]["metrics"], expected, strict=True):
        assert actual.keys() == step.keys()
        for name, number in step.items():
            # A mean of differences of both signs: it rounds as rewards of about 0.1 do.
            how = {"abs": 1e-7} if name == "reward_margin" else {"rel": 1e-6}
            assert actual[name] == pytest.approx(number, **how), name


def assert_same_scores(ranks, expected_BS):
    for run in ranks:
        first, score_BS = run["first_row"], run["scores"]
        reference_BS = expected_BS[first : first + len(score_BS)]
        torch.testing.assert_close(score_BS[: len(reference_BS)], reference_BS, rtol=0, atol=1e-5)


def assert_same(shards_of_ranks, expected_shards, what):
    actual, expected = assemble(shards_of_ranks), assemble([expected_shards])
    relative, name = difference(actual, expected)
    assert relative < 1e-5, f"{what}: {name} is off by {relative:.1e} of its norm"
    relative, name = difference(actual, expected, size=lambda x: x.abs().max())
    assert relative < 1e-4, f"{what}: an element of {name} is off by {relative:.1e} of the largest"
