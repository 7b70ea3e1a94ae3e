"""Two models in one process, the second with other weights in a layout of its own."""

import pytest
import torch
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.groups import ProcessGroups
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.parallel.mcore import parallel_state
from megatron_qwen3.parallel.runtime import patience, start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.objectives import cross_entropy

RATE, ROWS, POSITIONS = 1e-2, 8, 16
TRAINED = ("parallel.tensor=2", "parallel.pipeline=2", "model.preset=tiny-dense")
READ = {
    "four-data-ranks": ("model.preset=tiny-dense",),
    "tp2-pp2-too": TRAINED,
    "pp4-virtual": ("model.preset=tiny-dense", "model.num_layers=4", "parallel.pipeline=4"),
    "moe-tp2-ep2": ("model.preset=tiny-moe", "parallel.tensor=2", "parallel.expert=2"),
}
QUICK = ("pp4-virtual", "moe-tp2-ep2")


def tiny(*settings):
    base = ["train.precision=fp32", f"train.global_batch={ROWS}", "train.steps=3"]
    return load([], [*base, f"data.sequence_length={POSITIONS}", *settings])


def ids(step):
    random = torch.Generator().manual_seed(step)
    return torch.randint(0, 512, (ROWS, POSITIONS + 1), generator=random)


def batch_of(whole_BS1, rank, ranks):
    mine_BS1 = whole_BS1.chunk(ranks)[rank]
    return TokenBatch.of(mine_BS1[:, :-1], mine_BS1[:, 1:])


def scores_of(model):
    """(first row, log-probabilities) of this data rank's share of the first batch."""
    batch = batch_of(ids(0), model.data_rank, model.layout.data)
    return model.data_rank * batch.rows, model.score(batch, log_probs)["log_prob"]


def steps_with(read_settings):
    """Metrics of three steps, and a second model's scores before each; none: without one."""
    config = tiny(*TRAINED)
    engine = Engine(config, start(config))
    model, metrics, scores = None, [], []
    if read_settings:
        other = tiny("run.seed=99", *read_settings)
        layout = Layout.of(other, 4)
        model = Model(other, layout, ProcessGroups.make(layout, patience(other)))
    for step in range(3):
        if model:
            scores.append(scores_of(model))
        batch = batch_of(ids(step), engine.data_rank, engine.layout.data)
        metrics.append(engine.train_step(batch, cross_entropy, RATE))
    return metrics, scores, parallel_state.get_tensor_model_parallel_world_size()


def alone(read_settings):
    one = [s for s in read_settings if not s.startswith("parallel.")]
    config = tiny("run.seed=99", *one)
    return scores_of(Model(config, start(config)))[1]


@pytest.fixture(scope="module")
def undisturbed():
    return [metrics for metrics, _, _ in run_ranks(steps_with, 4, ())]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in READ],
)
def test_a_second_model_scores_while_the_first_trains_and_neither_notices(name, undisturbed):
    results = run_ranks(steps_with, 4, READ[name])
    assert [metrics for metrics, _, _ in results] == undisturbed  # to the bit
    (expected_BS,) = run_ranks(alone, 1, READ[name])
    for _, scores, tensor_ranks in results:
        assert tensor_ranks == 2  # megatron-core's own questions are answered for the run again
        for first, score_BS in scores:
            reference_BS = expected_BS[first : first + len(score_BS)]
            torch.testing.assert_close(score_BS, reference_BS, rtol=0, atol=1e-5)
