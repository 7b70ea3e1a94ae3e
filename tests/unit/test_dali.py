"""DALI reads the same as the thread, to the bit, and leaves no process behind.

A pipeline takes a second or two to begin, so that a test begins one where it can.
"""

import os
import signal
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from dialog_sets import write_set
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from ranks import forkserver
from read_by_steps import InTurn, Numbered
from test_data import mixture_of_documents
from test_packed_rows import mixture as packed_mixture
from test_pairs import answer

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.posttrain.rows.dialog_mixture import DialogMixture
from megatron_qwen3.posttrain.rows.dialog_rows import DialogRows
from megatron_qwen3.posttrain.rows.pair_mixture import PairMixture
from megatron_qwen3.posttrain.rows.pair_rows import PairRows
from megatron_qwen3.posttrain.rows.stored_targets import StoredTargets
from megatron_qwen3.posttrain.teachers.teacher_set import Targets, trained_labels, write
from megatron_qwen3.pretrain.rows import StepRows
from megatron_qwen3.training import dali, reader
from megatron_qwen3.training.arrays import Arrays, as_bytes
from megatron_qwen3.training.batch import TokenBatch
from tests.packed import write_packed

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="DALI is for Linux")


def assert_equal(found, expected):
    """Two batches, to the bit and in every type."""
    for name in ("tokens_BS", "labels_BS", "weights_BS", "valid_BS"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), name
    assert (found.stretches is None) == (expected.stretches is None)
    if found.stretches:
        assert found.stretches.bounds == expected.stretches.bounds
        assert found.stretches.cu_seqlens.dtype == expected.stretches.cu_seqlens.dtype
        assert torch.equal(found.stretches.positions_BS(), expected.stretches.positions_BS())
    assert found.extra.keys() == expected.extra.keys()
    for name, x in found.extra.items():
        assert x.dtype == expected.extra[name].dtype and torch.equal(x, expected.extra[name]), name


# ---- one process's bytes are another's batch ---------------------------------------------------


@trials(max_examples=60)
@given(data=st.data(), rows=st.integers(1, 4), length=st.integers(1, 40))
def test_a_batch_goes_through_bytes_unchanged(data, rows, length):
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    shape = rows, length
    extra = {
        "double": random.random((rows, length, 2)),
        "half": random.random((rows, 3)).astype(np.float16),
        "flag": random.random(rows) < 0.5,
        "tokens_BS": random.integers(0, 9, rows, np.int32),  # an extra's name is its own affair
        "turned": random.integers(0, 9, (length, rows)).T,
    }
    cuts = st.lists(st.integers(1, max(1, length - 1)), unique=True, max_size=min(5, length - 1))
    starts = [[0, *sorted(data.draw(cuts))] for _ in range(rows)]
    arrays = Arrays(
        random.integers(0, 1 << 40, shape),
        random.integers(0, 1 << 40, shape),
        random.random(shape).astype(np.float32),
        starts if data.draw(st.booleans()) else None,
        random.random(shape) < 0.5 if data.draw(st.booleans()) else None,
        extra if data.draw(st.booleans()) else {},
    )
    said, bytes_T = as_bytes(arrays)
    assert_equal(dali._batch(said, torch.from_numpy(bytes_T)), TokenBatch.of_arrays(arrays))


# ---- every mode's rows -------------------------------------------------------------------------


def documents(folder):
    return StepRows(mixture_of_documents(folder), range(2, 4), True)


def packed(folder):
    texts = [np.arange(length) for length in [9, 30, 4, 16, 1, 22, 7] * 9]
    write_packed(folder / "a", texts, row_length=16, filler=0)
    return StepRows(packed_mixture(folder, ["a"]), range(4), False)


def dialogs(folder):
    """With targets that a teacher left beside the set."""
    random = np.random.default_rng(0)
    samples = [([*random.integers(0, 100, n)], [k % 2 for k in range(n)]) for n in range(5, 25)]
    written = write_set(folder / "set", samples)

    def score(some):
        counts = [len(trained_labels(sample)) for sample in some]
        return [
            Targets(
                np.tile(np.arange(2, dtype=np.int32), (n, 1)),
                np.log(random.random((n, 2)) / 4).astype(np.float32),
                np.log(random.random(n) / 4).astype(np.float32),
            )
            for n in counts
        ]

    about = {"teacher": "made up", "temperature": 1.0, "vocab_size": 100}
    write(written, about, 2, score)
    source = f'[{{name = "web", path = "{written.prefix}"}}]'
    asked = ["run.mode=sft", "sft.objective=soft_targets", "sft.teacher.top_k=2", "train.steps=9"]
    asked += ["model.preset=tiny-dense", "data.sequence_length=32", f"sft.sources={source}"]
    config = load([], asked)
    mixture = DialogMixture(config)
    return DialogRows(config, range(4, 8), mixture, StoredTargets(config, mixture))


def pairs(folder):
    samples = [answer(10 * (n % 8), 4 + n % 9) for n in range(20)]
    margins = np.repeat(np.arange(10) / 4, 2)
    written = write_set(folder / "pairs", samples, kind="pairs", margin=margins)
    source = f'[{{name = "web", path = "{written.prefix}"}}]'
    asked = ["run.mode=reward", "model.preset=tiny-dense", f"reward.sources={source}"]
    config = load([], [*asked, "data.sequence_length=32", "train.steps=9", "reward.margin=true"])
    return PairRows(config, range(8), PairMixture(config))


@linux
def test_dali_gives_the_batches_of_the_thread_from_any_step_on(tmp_path):
    modes = (documents, packed, dialogs, pairs)
    read = InTurn(tuple(made(tmp_path) for made in modes))
    first, steps = 9 * len(modes), 12 * len(modes)
    with (
        dali.DaliReader(read, steps, CPU) as ours,
        reader.BatchReader(lambda step: TokenBatch.of_arrays(read(step)), steps, CPU) as theirs,
    ):
        for step in range(first, steps):
            assert_equal(ours.batch(step, step + 1), theirs.batch(step, step + 1))


# ---- steps and processes -----------------------------------------------------------------------


def step_of(batch):
    return batch.tokens_BS[0, 0].item()


def reader_of(batch):
    """The process that read a batch."""
    return batch.extra["process"][0].item()


def is_gone(process, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(process) or psutil.Process(process).status() == "zombie":
            return True
        time.sleep(0.05)
    return False


@linux
def test_what_cannot_be_read_is_told_at_its_step_and_no_process_stays():
    with dali.DaliReader(Numbered(bad=(2, 7)), 6, CPU) as batches:
        first = batches.batch(0, 1)
        assert step_of(first) == 0 and reader_of(first) != os.getpid()
        assert step_of(batches.batch(1, 2)) == 1
        with pytest.raises(ValueError, match="step 2 is damaged"):
            batches.batch(2, 3)
        last = [batches.batch(step, step + 1) for step in (3, 4, 5)]
        assert [*map(step_of, last)] == [3, 4, 5]
        assert {*map(reader_of, last)} == {reader_of(first)}
    assert is_gone(reader_of(first))


@linux
@pytest.mark.parametrize("asked", [[0, 3, 4], pytest.param([2, 1, 0], marks=pytest.mark.slow)])
def test_a_step_that_was_not_expected_is_read_when_it_is_asked_for(asked):
    with dali.DaliReader(Numbered(), 9, CPU) as batches:
        assert [step_of(batches.batch(step, step + 1)) for step in asked] == asked


@linux
def test_what_asks_a_run_to_stop_leaves_it_its_reader_whose_death_is_told():
    with dali.DaliReader(Numbered(), 99, CPU) as batches:
        process = reader_of(batches.batch(0, 1))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(process, number)
        assert [step_of(batches.batch(step, step + 1)) for step in range(1, 6)] == [1, 2, 3, 4, 5]
        os.kill(process, signal.SIGKILL)
        (child,) = batches._processes
        child.join()
        with pytest.raises(RuntimeError, match='want of memory.*data.loader = "thread"'):
            batches.batch(6, 7)


def read_until_killed(pipe):
    with dali.DaliReader(Numbered(slow=(2,)), 9, CPU) as batches:
        pipe.send(reader_of(batches.batch(0, 1)))


@linux
def test_the_process_ends_with_a_rank_that_is_killed_even_while_it_reads():
    ours, theirs = forkserver.Pipe()
    rank = forkserver.Process(target=read_until_killed, args=(theirs,))
    rank.start()
    try:
        process = ours.recv()
        assert psutil.pid_exists(process)
    finally:
        rank.kill()
        rank.join()
    assert is_gone(process)


# ---- where it is not installed -----------------------------------------------------------------


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    config = load([], ["model.preset=tiny-dense", "train.steps=1", "data.loader=dali"])
    monkeypatch.setitem(sys.modules, "nvidia", None)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(ConfigError, match=r"pip install nvidia-dali-cuda130==2\.4\.0 .*thread"):
        reader.check(config)
    reader.check(load([], ["model.preset=tiny-dense", "train.steps=1"]))


def test_modes_that_read_nothing_ahead_refuse_a_loader():
    asked = ["run.mode=rl", "model.preset=tiny-dense", "train.steps=1", "data.loader=dali"]
    with pytest.raises(ConfigError, match="none is read ahead"):
        load([], asked)
