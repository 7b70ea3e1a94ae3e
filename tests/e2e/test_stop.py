"""Runs that are told to stop, killed or refused by their disk at the worst moment lose nothing."""

import contextlib
import io
import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import broken
import pytest
from ranks import RankError, run_ranks

from megatron_qwen3 import train
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.storage import folder, torch_dist
from megatron_qwen3.training import engine, model
from megatron_qwen3.training.saver import Saver
from megatron_qwen3.training.stop import CONTINUE

SHORT = ("train.steps=4", "data.held_out=0.2", "eval.tokens=1024")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return broken.corpus(tmp_path_factory.mktemp("corpus"))


def arguments(settings, home, *more):
    return [*settings, f"run.dir={home}", "run.name=run", *SHORT, *more]


def evaluations(home):
    lines = (home / "run" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "eval"]


def as_nice_nobody(arguments):
    """A process that is nicer than the writing thread wants to be, and may not be less so."""
    os.umask(0)
    os.nice(15)
    start = Saver.start

    def of_nobody(self, progress):
        if os.geteuid() == 0:  # only now: packages may be readable by root alone
            os.setuid(65534)
        with pytest.raises(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, 10)
        start(self, progress)

    Saver.start = of_nobody
    return train.main(arguments)


def test_a_run_with_a_high_nice_of_an_ordinary_user_saves(settings):
    with tempfile.TemporaryDirectory() as home:  # pytest's own folders are for one user
        os.chmod(home, 0o777)
        asked = arguments(settings, home, "train.steps=2", "data.held_out=0")
        assert run_ranks(as_nice_nobody, 1, asked) == [0]
        assert folder.step_of(folder.newest(Path(home) / "run")) == 2


def run_and_in_evaluation(arguments, do, steps=4):
    """Call `do(batches)` before every batch of held-out text; the batches that were scored."""
    score, trained, batches = model.Model.score, [], []
    train_step = engine.Engine.train_step

    def counted(self, *args):
        trained.append(None)
        return train_step(self, *args)

    def disturbed(self, batch, head):
        batches.append(None)
        if len(trained) == steps:
            do(len(batches))
        return score(self, batch, head)

    engine.Engine.train_step, model.Model.score = counted, disturbed
    return train.main(arguments), len(batches), len(trained)


def power_cut(batches):
    raise OSError("power cut")


def term_on_one_rank(batches):
    if batches == 1 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)


def run_and_cut(arguments):
    return run_and_in_evaluation(arguments, power_cut)


def run_and_term(arguments):
    return run_and_in_evaluation(arguments, term_on_one_rank)


def count_batches(arguments):
    return run_and_in_evaluation(arguments, lambda batches: None, steps=0)


def test_a_run_killed_in_its_last_evaluation_has_saved_and_evaluates_at_the_next_start(
    settings, tmp_path
):
    asked = arguments(settings, tmp_path, "checkpoint.every_steps=0")
    with pytest.raises(RankError, match="power cut"):
        run_ranks(run_and_cut, 1, asked)
    assert folder.step_of(folder.newest(tmp_path / "run")) == 4
    assert not evaluations(tmp_path)
    assert run_ranks(count_batches, 1, asked)[0][::2] == (0, 0)
    assert {row["step"] for row in evaluations(tmp_path)} == {4}
    assert run_ranks(count_batches, 1, asked) == [(0, 0, 0)]


@pytest.fixture(scope="module")
def two_steps(settings, tmp_path_factory):
    """A run folder of two steps."""
    home = tmp_path_factory.mktemp("two_steps")
    asked = arguments(settings, home, "checkpoint.every_steps=0", "train.steps=2")
    assert run_ranks(count_batches, 1, asked)[0][0] == 0
    return home / "run"


@pytest.mark.parametrize("last", [3, 9])
def test_a_run_whose_last_steps_are_left_out_ends_saved_and_evaluated(
    settings, two_steps, tmp_path, last
):
    asked = arguments(settings, tmp_path, "checkpoint.every_steps=0")
    shutil.copytree(two_steps, tmp_path / "run")
    left_out = {"first": 2, "last": last, "reason": "bad"}
    (tmp_path / "run" / "left_out.jsonl").write_text(json.dumps(left_out) + "\n")
    status, batches, trained = run_ranks(count_batches, 1, asked)[0]
    assert (status, trained) == (0, 0) and batches
    assert folder.step_of(folder.newest(tmp_path / "run")) == 4
    assert {row["step"] for row in evaluations(tmp_path)} == {2, 4}


def test_a_stop_is_heard_between_two_batches_of_held_out_text(settings, tmp_path):
    asked = arguments(settings, tmp_path)
    assert run_ranks(run_and_term, 2, asked) == [(CONTINUE, 1, 4)] * 2
    assert not evaluations(tmp_path)
    (status, batches, trained), other = run_ranks(count_batches, 2, asked)
    assert (status, trained) == (0, 0) and batches > 2 and other == (0, batches, 0)
    assert {row["step"] for row in evaluations(tmp_path)} == {4}


def with_a_bad_id(arguments):
    Mixture.check_vocabulary = lambda *args, **kwargs: None  # it looks at the first bytes alone
    read = Mixture.read

    def bad(self, places, *args):
        rows = read(self, places, *args)
        for row, place in enumerate(places):
            source = self.sources[place.source]
            if place.source == 1 and place.ranges[0][0] >= source.tokens - source.held_out:
                rows.labels_BS[row, -1] = 60_000
        return rows

    Mixture.read = bad
    return stopped(arguments)


def stopped(arguments):
    """The exit status of a run that ends itself, and its messages."""
    with contextlib.redirect_stderr(io.StringIO()) as told, pytest.raises(SystemExit) as ended:
        train.main(arguments)
    return ended.value.code, told.getvalue()


@pytest.mark.parametrize("every", [0, 2])
def test_a_bad_id_in_held_out_text_leaves_the_run_saved_and_names_the_source(
    settings, tmp_path, every
):
    asked = arguments(settings, tmp_path, "checkpoint.every_steps=0", f"eval.every_steps={every}")
    (status, told), (other, nothing) = run_ranks(with_a_bad_id, 2, asked)
    step = every or 4
    assert status == other == 1 and not nothing
    assert f"the evaluation after step {step}: the held-out text of source b has token" in told
    assert "60,000, but model.vocab_size has 512" in told
    assert f"step {step} is saved in {tmp_path}/run/checkpoints/step_0000000{step}" in told
    assert folder.step_of(folder.newest(tmp_path / "run")) == step


def on_a_slow_disk(arguments):
    """Rank 1 writes for longer than nothing may happen, but it writes."""
    add = torch_dist.ChunkFile.add_tensor

    def slow(self, place, tensor):
        if os.environ["RANK"] == "1":
            time.sleep(0.1)
        add(self, place, tensor)

    torch_dist.ChunkFile.add_tensor = slow
    began = time.monotonic()
    return train.main(arguments), time.monotonic() - began


def test_a_slow_save_is_not_ended_as_a_hang(settings, tmp_path):
    more = ("train.steps=1", "checkpoint.every_steps=0", "guard.hang_seconds=4")
    (status, seconds), (other, _) = run_ranks(
        on_a_slow_disk, 2, arguments(settings, tmp_path, *more)
    )
    assert (status, other) == (0, 0) and seconds > 4


def non_finite_at_the_end(arguments):
    """The last update leaves a weight that no later step would tell of."""
    train_step, done = engine.Engine.train_step, []

    def poisoned(self, *args):
        metrics = train_step(self, *args)
        done.append(None)
        if len(done) == 3:
            self.model.synchronize()
            self.model.chunks[0].decoder.layers[0].mlp.router.weight.data.fill_(float("inf"))
        return metrics

    engine.Engine.train_step = poisoned
    return stopped(arguments)


def test_weights_that_are_not_finite_are_not_saved_over_those_that_are(settings, tmp_path):
    more = ("train.steps=3", "checkpoint.every_steps=2", "checkpoint.keep=1")
    ((status, told),) = run_ranks(non_finite_at_the_end, 1, arguments(settings, tmp_path, *more))
    assert status == 1
    assert folder.step_of(folder.newest(tmp_path / "run")) == 2
    assert "step 3 is not saved: its weights are not finite; the last checkpoint is" in told
