"""CUDA graphs of parts of layers: the same steps to the bit as without, and nothing is frozen.

Graphs are stood in (`te_graphs.py`): a replay runs the operations that were captured, on the memory
and with the numbers that they were captured with.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from megatron_qwen3.config import load
from megatron_qwen3.toml import emit
from tests.ranks import RankError
from tests.te.te_ranks import run_te_ranks

WARM_UP = 3  # steps, as megatron-core has it
LENGTH = 32
DENSE, SPARSE = ("attn", "mlp"), ("attn", "moe_router")
MODELS = {"dense": "tiny-dense", "moe": "tiny-moe"}
LAYOUTS = {
    "tp1": (1, ()),
    "dp2": (2, ()),
    "tp2": (2, ("parallel.tensor=2",)),
    "pp2": (2, ("parallel.pipeline=2",)),
    "pp2-vpp2": (2, ("parallel.pipeline=2", "parallel.virtual_pipeline=2")),
    "ep2": (2, ("parallel.expert=2",)),
    "tp2-ep2": (2, ("parallel.tensor=2", "parallel.expert=2")),
}
SLOW = pytest.mark.slow


def asked(model, layout, *more):
    base = ["train.steps=9", "train.global_batch=8", "train.micro_batch=2", "model.kind=te"]
    base += [f"data.sequence_length={LENGTH}", "model.num_layers=4"]
    base += ["model.router_aux_loss=0.1"] if model == "moe" else []
    return load([], [f"model.preset={MODELS[model]}", *base, *LAYOUTS[layout][1], *more])


def graphed(*parts):
    return f"overlap.cuda_graphs={emit([*parts])}"


def batch_of(step, data_rank, data_ranks, rows=8, length=LENGTH):
    from megatron_qwen3.training.batch import TokenBatch

    random = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 512, (rows, length + 1), generator=random).chunk(data_ranks)[data_rank]
    return TokenBatch.of(ids[:, :-1], ids[:, 1:].contiguous())


def trained(config, change="", steps=6):
    """Metrics of each of some steps, and the gradients it leaves; at last weights, and how many
    graphs each step has replayed. `change`: a function of this module that is called first, and
    may give one that makes a step's batch of the plain one."""
    from megatron_qwen3.parallel.runtime import start
    from megatron_qwen3.training.engine import Engine
    from megatron_qwen3.training.objectives import cross_entropy
    from tests.te.te_graphs import replays

    layout = start(config)
    engine = Engine(config, layout)
    made: Callable = (globals()[change](engine) if change else None) or (lambda step, batch: batch)
    reports, gradients, counts = [], [], []
    for step in range(steps):
        before = replays["graphs"]
        batch = made(step, batch_of(step, engine.data_rank, layout.data))
        reports.append(engine.train_step(batch, cross_entropy, 1e-2))
        buffers = [b for c in engine.chunks for b in c.buffers + c.expert_parallel_buffers]
        gradients.append([buffer.grad_data.clone() for buffer in buffers])
        counts.append(replays["graphs"] - before)
    engine.model.synchronize()
    weights = [p.detach().clone() for c in engine.model.chunks for p in c.parameters()]
    return reports, gradients, weights, counts


def same(found, expected):
    """To the bit."""
    for mine, theirs in zip(found, expected, strict=True):
        assert mine[0] == theirs[0]
        for a, b in zip(mine[1], theirs[1], strict=True):
            assert all(map(torch.equal, a, b)), "gradients"
        assert all(map(torch.equal, mine[2], theirs[2])), "weights"


@functools.cache
def without(model, layout, change="", *more):
    return run_te_ranks(trained, LAYOUTS[layout][0], asked(model, layout, *more), change)


def test_a_replay_reads_memory_anew_and_numbers_never():
    from tests.te.te_graphs import Capture, CUDAGraph

    x, total, factor, graph = torch.ones(3), torch.zeros(()), 2.0, CUDAGraph()
    with Capture(graph):
        y = x * factor
        total += y.sum()
        parts = y.chunk(3)
    x.fill_(5.0)
    factor = 7.0
    graph.replay()
    assert y.tolist() == [10.0] * 3 and total.item() == 6.0 + 30.0
    assert torch.cat(parts).equal(y)


CASES = [
    ("dense", "dp2", DENSE),
    pytest.param("dense", "pp2", DENSE, marks=SLOW),
    ("moe", "ep2", SPARSE),
    ("dense", "tp2", DENSE),
    pytest.param("dense", "tp1", DENSE, marks=SLOW),
    pytest.param("dense", "tp1", ("attn",), marks=SLOW),
    pytest.param("dense", "tp1", ("mlp",), marks=SLOW),
    pytest.param("dense", "pp2-vpp2", DENSE, marks=SLOW),
    pytest.param("moe", "tp1", ("attn",), marks=SLOW),
    pytest.param("moe", "tp1", ("moe_router",), marks=SLOW),
    pytest.param("moe", "tp2-ep2", SPARSE, marks=SLOW),
    pytest.param("moe", "pp2", SPARSE, marks=SLOW),
]


@pytest.mark.parametrize(("model", "layout", "parts"), CASES)
def test_steps_are_those_without_graphs_to_the_bit(model, layout, parts):
    config = asked(model, layout, graphed(*parts))
    found = run_te_ranks(trained, LAYOUTS[layout][0], config)
    same(found, without(model, layout))
    parallel = config.parallel
    data = LAYOUTS[layout][0] // (parallel.tensor * parallel.pipeline)
    layers, micro_batches = 4 // parallel.pipeline, 8 // 2 // data
    for *_, counts in found:
        # Forward and backward, of each layer and micro-batch.
        assert counts == [0] * WARM_UP + [2 * layers * micro_batches] * 3


def other_sizes(engine):
    """Every second step has twice as many rows, and so twice as many positions."""
    return lambda step, batch: batch if step % 2 else _twice(batch)


def _twice(batch):
    from megatron_qwen3.training.batch import TokenBatch

    return TokenBatch.of(batch.tokens_BS.repeat(2, 1), batch.labels_BS.repeat(2, 1))


def frozen_positions(engine):
    """The router has the step's positions as a number, which a graph keeps."""
    for router in engine.balance.routers.values():
        _freeze(router, router.begin_step)
    return other_sizes(engine)


def _freeze(router, begin_step):
    def begun(positions, *others):
        vars(router).pop("step_positions", None)
        begin_step(positions, *others)
        vars(router)["step_positions"] = float(positions)

    router.begin_step = begun


def test_what_differs_from_step_to_step_is_not_frozen_and_would_show_if_it_were():
    config = asked("moe", "tp1", graphed(*SPARSE))
    same(run_te_ranks(trained, 1, config, "other_sizes"), without("moe", "tp1", "other_sizes"))
    number = without("moe", "tp1", "frozen_positions")
    same(number, without("moe", "tp1", "other_sizes"))
    ((reports, gradients, weights, _),) = run_te_ranks(trained, 1, config, "frozen_positions")
    ((expected, their_gradients, their_weights, _),) = number
    # Captured with the number of step 2, which has twice as many positions as step 3.
    assert all(map(torch.equal, gradients[2], their_gradients[2]))
    assert not all(map(torch.equal, gradients[3], their_gradients[3]))
    assert reports[:3] == expected[:3] and reports[4] != expected[4]
    assert not all(map(torch.equal, weights, their_weights))


def odd_rows(engine):
    """Steps of documents, of padding, and of other lengths; scores of longer rows before step 7."""
    from megatron_qwen3.model.outputs import log_probs
    from megatron_qwen3.model.stretches import Stretches

    def made(step, batch):
        rows = batch.rows
        if step == 4:
            return replace(batch, stretches=Stretches.of([[0, 5 + r] for r in range(rows)], LENGTH))
        if step == 5:
            valid_BS = (torch.arange(LENGTH) < 20).expand(rows, -1)
            return replace(batch, valid_BS=valid_BS, weights_BS=batch.weights_BS * valid_BS)
        if step == 6:
            return batch_of(step, engine.data_rank, engine.layout.data, length=LENGTH // 2)
        if step == 7:  # after which the rotary tables are others
            longer = batch_of(step, engine.data_rank, engine.layout.data, length=2 * LENGTH)
            engine.model.score(longer, log_probs)
        if step == 8:  # whose last micro-batch is filled up
            return batch_of(step, engine.data_rank, engine.layout.data, rows=7)
        return batch

    return made


@pytest.mark.parametrize(
    ("model", "parts"), [("dense", DENSE), pytest.param("moe", SPARSE, marks=SLOW)]
)
def test_rows_that_were_not_captured_take_the_layers_themselves(model, parts):
    config = asked(model, "tp1", graphed(*parts))
    found = run_te_ranks(trained, 1, config, "odd_rows", 10)
    same(found, run_te_ranks(trained, 1, asked(model, "tp1"), "odd_rows", 10))
    all_of_them = 2 * 4 * 4
    ((*_, counts),) = found
    expected = [0, 0, 0, all_of_them, 0, 0, 0, all_of_them, 0, all_of_them]
    assert counts == expected


def test_stages_have_graphs_for_as_many_micro_batches_as_were_captured():
    """Step 3 has 16 rows, and captures; the others of 8 rows are taken without."""
    config = asked("dense", "pp2", graphed(*DENSE))
    found = run_te_ranks(trained, 2, config, "sixteen_once")
    same(found, without("dense", "pp2", "sixteen_once"))
    for *_, counts in found:
        assert counts == [0, 0, 0, 2 * 2 * 8, 0, 0]


def sixteen_once(engine):
    return lambda step, batch: _twice(batch) if step == WARM_UP else batch


def loaded(config, folder):
    """The losses of five steps, and of the last two again from the checkpoint before them; how many
    graphs each has replayed; names of moved weights; the text to log, twice; and
    whether other threads were held while graphs were captured."""
    from megatron_qwen3.parallel.runtime import start
    from megatron_qwen3.training import checkpoint, graphs, saver
    from megatron_qwen3.training.engine import Engine
    from megatron_qwen3.training.objectives import cross_entropy
    from tests.te.te_graphs import replays

    create, held = graphs.TECudaGraphHelper.create_cudagraphs, []
    graphs.TECudaGraphHelper.create_cudagraphs = lambda helper: (
        held.append(graphs.CAPTURING.locked()) or create(helper)
    )
    config = replace(config, run=replace(config.run, dir=folder))
    engine, losses, counts = Engine(config, start(config)), [], []
    path = None
    for step in (0, 1, 2, 3, 4, 3, 4):
        if step == 3 and len(losses) == 5:
            checkpoint.load(engine, path)
        before = replays["graphs"]
        losses.append(engine.train_step(batch_of(step, 0, 1), cross_entropy, 1e-2)["loss"])
        counts.append(replays["graphs"] - before)
        if len(losses) == 3:
            path = saver.save(engine, config, 3)
    weight = engine.model.chunks[0].decoder.layers[1].self_attention.linear_proj.weight
    weight.data = weight.data.clone()
    try:
        engine.train_step(batch_of(5, 0, 1), cross_entropy, 1e-2)
    except RuntimeError as error:
        return losses, counts, str(error), engine.graphs.news(), engine.graphs.news(), held
    raise AssertionError("nobody has seen that a weight was moved")


def test_a_checkpoint_is_loaded_into_the_places_of_graphs_and_what_moves_is_seen(tmp_path):
    config = asked("dense", "tp1", graphed(*DENSE))
    ((losses, counts, error, news, none, held),) = run_te_ranks(loaded, 1, config, str(tmp_path))
    assert losses[3:5] == losses[5:7] and losses[3] != losses[4]
    assert counts == [0, 0, 0, 32, 32, 32, 32]
    assert "were moved since CUDA graphs were captured" in error
    assert len(news) == 1 and not none and held == [True]
    assert news[0].startswith("CUDA graphs: attn, mlp, 4 of this rank, captured in ")


@pytest.mark.slow
def test_attention_by_cudnn_is_replayed_to_the_bit():
    config = asked("dense", "tp1", graphed(*DENSE))
    found, expected = (
        run_te_ranks(trained, 1, each, fused_attention=True)
        for each in (config, asked("dense", "tp1"))
    )
    same(found, expected)


def waits(config):
    """A router that reads a number on the host."""
    from megatron_qwen3.model.te import TERouter

    forward = TERouter.forward

    def reading(self, hidden_sBH, padding_sB=None):
        if hidden_sBH.sum().item() == float("inf"):
            raise ValueError
        return forward(self, hidden_sBH, padding_sB)

    TERouter.forward = reading
    return trained(config)


def test_a_router_that_waits_for_the_device_is_not_captured():
    with pytest.raises(RankError, match="_local_scalar_dense waits for the device"):
        run_te_ranks(waits, 1, asked("moe", "tp1", graphed("moe_router")))
