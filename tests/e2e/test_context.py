"""Runs whose ranks share rows: they learn, are evaluated, cut off and gone on with as any other."""

import broken
import numpy as np
import pytest
from packed import write_packed
from ranks import RankError, run_ranks
from runs import arguments, power_cut, rows, run

from data_prep.indexed import IndexedReader, IndexedWriter
from megatron_qwen3.config import ConfigError, load

STEPS, LENGTH = 6, 32
ONE, TWO = (), ("parallel.context=2",)
# Updates of a token whose gradient is nothing but rounding are as small as it.
MORE = (f"train.steps={STEPS}", "eval.every_steps=3", "eval.tokens=512", "optim.eps=1e-6")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of a short run on documents that are shorter than rows, and longer: of one source as they
    follow each other, of the other packed, two rows to a sequence, which have filler at the end."""
    folder, random = tmp_path_factory.mktemp("corpus"), np.random.default_rng(3)
    texts = [random.integers(0, broken.VOCABULARY, n) for n in random.integers(1, 2 * LENGTH, 120)]
    with IndexedWriter(folder / "a", np.uint16) as writer:
        for ids in texts[:60]:
            writer.add_document(ids)
    write_packed(folder / "b", texts[60:], LENGTH // 2, filler=0, dtype=np.uint16)
    assert IndexedReader(folder / "b").text_R.min() < LENGTH // 2
    sources = ", ".join(f'{{name = "{name}", path = "{folder / name}"}}' for name in ("a", "b"))
    kept_apart = ["data.reset_at_documents=true", "data.held_out=0.2", "checkpoint.every_steps=2"]
    return [*broken.corpus(folder), *MORE, *kept_apart, f"data.sources=[{sources}]"]


def losses(home):
    """Of each step, and of each evaluation."""
    kinds = rows(home / "run"), rows(home / "run", "eval")
    return [[(row["step"], row["loss"]) for row in kind] for kind in kinds]


def assert_alike(home, expected):
    for found, wanted in zip(losses(home), expected, strict=True):
        assert [step for step, _ in found] == [step for step, _ in wanted]
        assert [x for _, x in found] == pytest.approx([x for _, x in wanted], rel=1e-6)


@pytest.fixture(scope="module")
def undisturbed(settings, tmp_path_factory):
    """Losses of a run on one rank."""
    home = tmp_path_factory.mktemp("undisturbed")
    assert run_ranks(run, 1, arguments(settings, home)) == [0]
    found = losses(home)
    assert [len(kind) for kind in found] == [STEPS, 2 * 3]
    return found


def cut_and_gone_on(settings, home, before, after):
    """A run that is cut off in step 4 and goes on after step 2; layouts as (ranks, settings)."""
    ranks, layout = before
    with pytest.raises(RankError, match="power cut"):
        run_ranks(power_cut, ranks, arguments(settings, home, *layout), 4)
    ranks, layout = after
    assert run_ranks(run, ranks, arguments(settings, home, *layout)) == [0] * ranks


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param((2, TWO), (2, TWO), id="2-2"),
        pytest.param((1, ONE), (2, TWO), id="1-2", marks=pytest.mark.slow),
        pytest.param((2, TWO), (1, ONE), id="2-1", marks=pytest.mark.slow),
        pytest.param(
            (4, (*TWO, "parallel.tensor=2")),
            (4, (*TWO, "parallel.pipeline=2")),
            id="2-with-tensor-2-with-pipeline",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            (4, (*TWO, "parallel.expert=2", "train.micro_batch=2")),
            (4, ("parallel.context=4", "parallel.recompute=full")),
            id="2-with-data-and-experts-4",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_that_was_cut_off_has_the_losses_of_one_rank_whoever_shares_rows(
    settings, undisturbed, tmp_path, before, after
):
    cut_and_gone_on(settings, tmp_path, before, after)
    assert_alike(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_run_that_goes_on_in_the_same_layout_is_the_undisturbed_one_to_the_bit(
    settings, tmp_path
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run_ranks(run, 2, arguments(settings, whole, *TWO)) == [0, 0]
    cut_and_gone_on(settings, cut, (2, TWO), (2, TWO))
    assert losses(cut) == losses(whole)


def dialogs(folder):
    return [*broken.dialogs(folder), "sft.held_out=0.2"]


def pairs(folder):
    return [*broken.pairs(folder), "reward.held_out=0.2"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [dialogs, pairs])
def test_every_mode_learns_the_same_of_rows_that_ranks_share(mode, tmp_path):
    settings = [*mode(tmp_path), *MORE]
    for ranks, layout in ((1, ONE), (2, TWO), (4, (*TWO, "parallel.tensor=2"))):
        home = tmp_path / f"on_{ranks}"
        assert run_ranks(run, ranks, arguments(settings, home, *layout)) == [0] * ranks
        assert len(losses(home)[0]) == STEPS and losses(home)[1]
        assert_alike(home, losses(tmp_path / "on_1"))


RL = ("run.mode=rl", "model.preset=tiny-dense", "train.steps=1", *TWO, "train.precision=fp32")
RL += ("rollouts.tasks=[{name='a', path='gym:chain_sum'}]", "data.sequence_length=2048")


def test_ranks_that_share_rows_leave_sampling_to_servers():
    servers = ("rollouts.engine=vllm", "rollouts.vllm.urls=['http://node1:8000']")
    assert load([], [*RL, *servers]).parallel.context == 2
    with pytest.raises(ConfigError) as error:
        load([], [*RL, "rollouts.engine=own"])
    assert "parallel.context = 2 splits them" in str(error.value)
