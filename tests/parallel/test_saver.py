"""Saving while steps run: the copy is of one moment, a failure costs nothing, damage is found."""

import os
import shutil
import subprocess
import threading
from dataclasses import replace

import pytest
import torch
from ranks import RankError, run_ranks
from shards import assemble
from test_checkpoint import LAYOUTS, only_loaded, resumed, settings, steps, weights_of

from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.storage import manifest, torch_dist
from megatron_qwen3.training import checkpoint, saver
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.progress import Progress
from megatron_qwen3.training.saver import SaveFailed, Saver


def saved_while_training(config):
    """Steps run on while the checkpoint of step 2 is written; the writing waits for the last."""
    engine = Engine(config, start(config))
    losses, started = steps(engine, 0, 2), weights_of(engine)
    write, trained = torch_dist.ChunkFile.add_tensor, threading.Event()

    def slow(self, place, tensor):
        trained.wait()
        write(self, place, tensor)

    torch_dist.ChunkFile.add_tensor = slow
    background = Saver(engine, config)
    background.start(Progress(2))
    losses += steps(engine, 2, 5)
    assert background.state == saver.WRITING and not checkpoint.checkpoints(config.run_dir)
    trained.set()
    assert background.wait(lambda done: None) == checkpoint.checkpoints(config.run_dir)[-1]
    return losses, started, weights_of(engine)


@pytest.mark.parametrize(
    ("preset", "layout"),
    [("tiny-moe", "tp2-ep2"), ("tiny-dense", "dp2")],
)
def test_what_is_saved_is_the_moment_at_which_saving_began(tmp_path, preset, layout):
    config, ranks = settings(tmp_path, preset, layout), LAYOUTS[layout][0]
    whole = run_ranks(saved_while_training, ranks, config)
    (saved,) = checkpoint.checkpoints(config.run_dir)
    assert manifest.faults(saved, share=(0, 1)) == []
    started = assemble([weights for _, weights, _ in whole])
    for name, values in assemble(run_ranks(only_loaded, ranks, config, saved)).items():
        assert torch.equal(values, started[name]), name
    again = run_ranks(resumed, ranks, config, saved)
    assert again[0][0] == whole[0][0][2:]
    ended = assemble([weights for _, _, weights in whole])
    for name, values in assemble([weights for _, weights in again]).items():
        assert torch.equal(values, ended[name]), name


FAILURES = [(1, "a part"), (0, "a part"), (0, "the table")]


def failing_each(config):
    """Names of the checkpoints left, and the messages, of each of FAILURES."""
    engine = Engine(config, start(config))
    return [failing(engine, config, *failure) for failure in FAILURES]


def failing(engine, config, failing_rank, where):
    """Save steps 1 to 3; in the second something fails on one rank. Files left, and messages."""
    named = "_".join([str(failing_rank), *where.split()])
    config = replace(config, run=replace(config.run, name=named))
    background, told = Saver(engine, config), ""
    broken = {
        "a part": (torch_dist.ChunkFile, "add_tensor"),
        "the table": (manifest, "write"),
    }[where]
    good = getattr(*broken)

    def full(*args):
        raise OSError(28, "No space left on device")

    for step in (1, 2, 3):
        fails = step == 2 and torch.distributed.get_rank() == failing_rank
        setattr(*broken, full if fails else good)
        background.start(Progress(step))
        try:
            background.wait(lambda done: None)
        except SaveFailed as error:
            told += str(error)
    return [c.name for c in (config.run_dir / "checkpoints").iterdir()], told


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """The results of `failing_each` on two ranks, by failure."""
    home = tmp_path_factory.mktemp("failures")
    of_ranks = run_ranks(failing_each, 2, settings(home, "tiny-dense", "dp2", "checkpoint.keep=9"))
    return dict(zip(FAILURES, zip(*of_ranks, strict=True), strict=True))


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: f"{failure[1]}-{failure[0]}")
def test_a_save_that_fails_leaves_the_older_one_and_the_next_succeeds(failures, failure):
    for names, told in failures[failure]:
        assert sorted(names) == ["step_00000001", "step_00000003"]
        assert told.startswith(
            f"step 2 could not be saved (rank {failure[0]}: OSError: [Errno 28] No sp"
        )
        assert told.endswith("step_00000001 is intact")


def on_a_small_disk(config):
    engine = Engine(config, start(config))
    saver.save(engine, config, 1)
    size = sum(f.stat().st_size for f in checkpoint.checkpoints(config.run_dir)[0].iterdir())
    room = shutil.disk_usage(config.run_dir).free
    (config.run_dir / "ballast").write_bytes(bytes(max(0, room - size // 2)))
    with pytest.raises(SaveFailed, match="No space left on device.*step_00000001 is intact"):
        saver.save(engine, config, 2)
    (config.run_dir / "ballast").unlink()
    return saver.save(engine, config, 3).name


def test_a_full_disk_is_told_and_costs_no_checkpoint(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount a tmpfs")
    try:
        config = settings(disk, "tiny-dense", "one")
        assert run_ranks(on_a_small_disk, 1, config) == ["step_00000003"]
        names = sorted(p.name for p in (config.run_dir / "checkpoints").iterdir())
        assert names == ["step_00000001", "step_00000003"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def saved_at(config, *at):
    engine = Engine(config, start(config))
    for step in at:
        steps(engine, step - 1, step)
        saver.save(engine, config, step)


def taken(config, in_full):
    start(config)
    path, told = checkpoint.newest_intact(config.run_dir, in_full)
    return path and path.name, told


def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_taken(tmp_path):
    config = settings(tmp_path, "tiny-dense", "dp2", "checkpoint.keep=3")
    run_ranks(saved_at, 2, config, 1, 2, 3)
    first, second, third = checkpoint.checkpoints(config.run_dir)
    cut = third / "__1_0.distcp"
    os.truncate(cut, cut.stat().st_size - 1)
    flipped = bytearray((second / "__0_0.distcp").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (second / "__0_0.distcp").write_bytes(flipped)
    for name, told in run_ranks(taken, 2, config, True):
        assert name == "step_00000001"
        assert "step_00000003 is damaged and set aside: __1_0.distcp: " in told[0]
        assert "step_00000002 is damaged and set aside: __0_0.distcp: its contents" in told[1]
    assert sorted(p.name for p in first.parent.iterdir()) == [
        "step_00000001",
        "step_00000002.damaged",
        "step_00000003.damaged",
    ]
    (first / "progress.json").unlink()
    with pytest.raises(RankError, match="no checkpoint of .* is intact; to begin again"):
        run_ranks(taken, 2, config, False)


def test_optimizer_state_is_written_once_and_by_the_rank_that_owns_it(tmp_path):
    """Nothing is gathered: two data ranks write about half each of all there is."""
    config = settings(tmp_path, "tiny-dense", "dp2")
    run_ranks(saved_at, 2, config, 1)
    (saved,) = checkpoint.checkpoints(config.run_dir)
    sizes = [(saved / f"__{rank}_0.distcp").stat().st_size for rank in range(2)]
    assert max(sizes) < 1.25 * min(sizes)
    one = settings(tmp_path / "one", "tiny-dense", "one")
    run_ranks(saved_at, 1, one, 1)
    alone = (checkpoint.checkpoints(one.run_dir)[0] / "__0_0.distcp").stat().st_size
    assert sum(sizes) < 1.1 * alone


def extra_state_at_each_save(config):
    """A module's extra state as it was when a save began, and as the checkpoints of steps have it.

    It is changed in place while it is written, as the scales of FP8 are by the next step.
    """
    engine = Engine(config, start(config))
    linear = engine.model.chunks[0].decoder.layers[0].self_attention.linear_qkv
    scale = torch.zeros(1)
    linear.get_extra_state = lambda: {"scale": scale}
    background, began = Saver(engine, config), threading.Event()
    write = background._write

    def late(*args):
        began.wait()
        write(*args)

    background._write = late
    for step in (1, 2):
        began.clear()
        scale.fill_(step)
        background.start(Progress(step))
        scale.fill_(-1)
        began.set()
        background.wait(lambda done: None)
    linear.set_extra_state = lambda state: found.append(float(state["scale"]))
    found = []
    for saved in checkpoint.checkpoints(config.run_dir):
        checkpoint.load_weights(engine, saved)
    return found


def test_extra_state_is_that_of_the_moment_of_each_save(tmp_path):
    config = settings(tmp_path, "tiny-dense", "one")
    assert run_ranks(extra_state_at_each_save, 1, config) == [[1.0, 2.0]]
