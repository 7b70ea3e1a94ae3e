"""A run whose batches DALI reads is, to the bit, the run whose batches a thread reads."""

import sys

import broken
import pytest
from ranks import run_ranks
from runs import arguments, rows, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="DALI is for Linux")


def losses(run_dir):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows(run_dir)]


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    more = ["model.preset=tiny-dense", "data.reset_at_documents=true", "train.steps=4"]
    return [*broken.corpus(folder), *more]


@pytest.fixture(scope="module")
def by_thread(settings, tmp_path_factory):
    """Where a run of two data ranks is."""
    home = tmp_path_factory.mktemp("thread")
    assert run_ranks(run, 2, arguments(settings, home)) == [0, 0]
    return home


def second_stage(settings, home, *more):
    """With longer rows."""
    lengths = ["data.sequence_length=48", "train.steps=2", f"checkpoint.init_from={home}/run"]
    return arguments(settings, home, *lengths, "run.name=second", *more)


def test_a_run_goes_on_in_the_middle_with_either_loader(settings, by_thread, tmp_path):
    first = arguments(settings, tmp_path, "train.steps=2")
    assert run_ranks(run, 2, first) == [0, 0]
    assert run_ranks(run, 2, arguments(settings, tmp_path, "data.loader=dali")) == [0, 0]
    assert losses(tmp_path / "run") == losses(by_thread / "run")


@pytest.mark.slow
def test_a_run_that_dali_began_goes_on_and_so_does_its_next_stage(settings, by_thread, tmp_path):
    dali = "data.loader=dali"
    assert run_ranks(run, 2, arguments(settings, tmp_path, dali, "train.steps=3")) == [0, 0]
    assert run_ranks(run, 2, arguments(settings, tmp_path, dali)) == [0, 0]
    assert run_ranks(run, 2, second_stage(settings, tmp_path, dali)) == [0, 0]
    assert run_ranks(run, 2, second_stage(settings, by_thread)) == [0, 0]
    for name in ("run", "second"):
        assert losses(tmp_path / name) == losses(by_thread / name)
