"""The optimizer on the host: the same updates and checkpoints as on the device.

megatron-core decides by `Tensor.is_cuda` which tensors to move, so on a CPU the model's tensors say
yes and those that were moved to the host say no, while the optimizer is built.
"""

import contextlib
from unittest.mock import patch

import pytest
import torch
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.cpu import redirect
from megatron_qwen3.parallel import runtime
from megatron_qwen3.storage import folder
from megatron_qwen3.training import checkpoint, engine, optim, saver
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy

from megatron.core.optimizer import optimizer_config  # isort: skip  (after ours)

RATE, POSITIONS = 1e-3, 16


class OnHost(torch.Tensor):
    """A tensor that was moved to the host's memory."""


@contextlib.contextmanager
def two_memories():
    """Tensors seem to be a GPU's until they are moved to the host."""
    empty = torch.empty

    def unpinned(*args, pin_memory=False, **kwargs):
        return empty(*args, **kwargs)

    with (
        patch.object(torch.Tensor, "is_cuda", property(lambda x: not isinstance(x, OnHost))),
        patch.object(torch.Tensor, "cpu", lambda x: x.as_subclass(OnHost)),
        patch.object(torch.Tensor, "pin_memory", lambda x: x),
        patch.object(torch, "empty", unpinned),
        patch.object(redirect._NoStream, "record_event", lambda stream: stream, create=True),
    ):
        yield


@contextlib.contextmanager
def _offloaded():
    """The same around functions that build and step the optimizer, and nothing else."""
    build, update = optim.build_optimizer, optim.update

    def within(function):
        def call(*args):
            with two_memories():
                return function(*args)

        return call

    with (
        patch.object(engine, "build_optimizer", within(build)),
        patch.object(engine, "update", within(update)),
        patch.object(runtime.overlap, "check", lambda config: None),
        patch.object(optimizer_config, "is_te_min_version", lambda *args: False),
    ):
        yield


def settings(run_dir, *more):
    return load(
        [],
        [
            "model.preset=tiny-moe",
            "train.steps=9",
            "train.global_batch=4",
            f"data.sequence_length={POSITIONS}",
            f"run.dir={run_dir}",
            *more,
        ],
    )


def _trained(engine, first, last):
    """Losses of steps first … last-1, and the weights after them."""
    losses = []
    for step in range(first, last):
        ids = torch.randint(512, (4, POSITIONS + 1), generator=torch.Generator().manual_seed(step))
        mine = ids.chunk(engine.layout.data)[engine.data_rank]
        batch = TokenBatch.of(mine[:, :-1], mine[:, 1:].contiguous())
        losses.append(engine.train_step(batch, cross_entropy, RATE)["loss"])
    engine.model.synchronize()
    return losses, [p.detach().float().clone() for p in engine.model.chunks[0].parameters()]


def _on_host(engine):
    """Share of the elements of AdamW's state that lie on the host."""
    sizes = {True: 0, False: 0}
    for tensor in optim.state_tensors(engine.optimizer):
        sizes[isinstance(tensor, OnHost)] += tensor.numel()
    return sizes[True] / sum(sizes.values())


def run(config, offloaded):
    """Two steps, a save, two steps more; the share on the host before and after the first step."""
    with _offloaded() if offloaded else contextlib.nullcontext():
        engine = Engine(config, runtime.start(config))
        shares = [_on_host(engine)]
        before = _trained(engine, 0, 2)
        shares.append(_on_host(engine))
        saver.save(engine, config, 2)
        after = _trained(engine, 2, 4)
    return before[0] + after[0], after[1], shares, optim.described(engine.optimizer)


def resume(config, path, offloaded):
    """The same last two steps, in a new engine."""
    with _offloaded() if offloaded else contextlib.nullcontext():
        engine = Engine(config, runtime.start(config))
        checkpoint.load(engine, path)
        return _trained(engine, 2, 4)


def from_weights(config, path, offloaded):
    """Two steps of a fresh optimizer, from the weights of a checkpoint in float32."""
    with _offloaded() if offloaded else contextlib.nullcontext():
        engine = Engine(config, runtime.start(config))
        optim.state_tensors(engine.optimizer)  # which is there before the weights are
        checkpoint.load_weights(engine, path)
        return _trained(engine, 2, 4)


def same(found, expected):
    assert found[0] == expected[0]
    for mine, theirs in zip(found[1], expected[1], strict=True):
        assert torch.equal(mine, theirs)


@pytest.fixture(scope="module")
def on_device(tmp_path_factory):
    config = settings(tmp_path_factory.mktemp("device"))
    return 2, config, run_ranks(run, 2, config, False)


@pytest.mark.parametrize(
    "options",
    [pytest.param("offload=1", marks=pytest.mark.slow), "offload=0.4 offload_overlap=true"],
)
def test_updates_on_the_host_are_those_on_the_device(on_device, tmp_path, options):
    ranks, on_device_config, expected = on_device
    given = [f"optim.{option}" for option in options.split()]
    config = settings(tmp_path, *given)
    share = config.optim.offload
    for found, theirs in zip(run_ranks(run, ranks, config, True), expected, strict=True):
        same(found, theirs)
        # Whole parameters are moved, until there is enough: of a tiny model no small part each.
        assert all(share <= s <= min(1.0, share + 0.2) for s in found[2])
        assert theirs[2] == [0.0, 0.0]
    here, there = (folder.newest(c.run_dir) for c in (config, on_device_config))
    for begun, path, other in ((here, here, True), (there, here, False), (here, there, True)):
        of = config if other else on_device_config
        found = run_ranks(resume, ranks, of, path, other)
        for mine, theirs in zip(found, expected, strict=True):
            same(mine, (theirs[0][2:], theirs[1]))
        assert begun


def test_weights_that_are_loaded_reach_the_host(on_device, tmp_path):
    ranks, there, _ = on_device
    path = folder.newest(there.run_dir)
    expected = run_ranks(from_weights, ranks, settings(tmp_path / "a"), path, False)
    config = settings(tmp_path / "b", "optim.offload=1")
    for mine, theirs in zip(
        run_ranks(from_weights, ranks, config, path, True), expected, strict=True
    ):
        same(mine, theirs)


def test_gradients_in_bf16_are_summed_in_bf16_and_train_alike(on_device, tmp_path):
    ranks, _, expected = on_device
    config = settings(tmp_path, "optim.gradients=bf16")
    for mine, theirs in zip(run_ranks(run, ranks, config, False), expected, strict=True):
        assert mine[0] == pytest.approx(theirs[0], rel=2e-3)
        assert mine[0][0] == theirs[0][0] and mine[0][1:] != theirs[0][1:]
