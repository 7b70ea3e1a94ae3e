"""Runs that are broken at random lose nothing, and a fault that would lose something is found.

tests/chaos.py plays many rounds; here is one of each way, and products that lose work.
"""

import shutil

import broken
import chaos
import pytest
import torch

RANKS = 2
QUICK = ("in save",)
OTHERS = [way for way in chaos.WAYS if way not in QUICK]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def reference(home):
    """An undisturbed run, whose last checkpoint holds the state that it had in memory."""
    return chaos.undisturbed(home, broken.corpus(home), RANKS)


def play(folder, reference, way, mutant=""):
    """One round; Result, or None where this user cannot play it."""
    results = chaos.play(folder, 1, 7, RANKS, (way,), reference=reference, mutant=mutant)
    return results[0] if results else None


@pytest.mark.parametrize(
    "way", [*QUICK, *(pytest.param(w, marks=pytest.mark.slow) for w in OTHERS)]
)
def test_a_broken_run_loses_nothing(reference, tmp_path, way):
    result = play(tmp_path, reference, way)
    if result is None:
        pytest.skip("only root may mount a small disk")
    assert result.broke and not result.lost, result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutant", "told"), [("weights zeroed", "other values"), ("moments x 1.0001", "losses differ")]
)
def test_chaos_finds_a_product_that_loses_work(reference, tmp_path, mutant, told):
    result = play(tmp_path, reference, "cut", mutant)
    assert result.broke and told in result.lost


@pytest.mark.slow
def test_chaos_does_not_begin_with_a_run_that_saves_other_weights_than_it_has(tmp_path):
    with pytest.raises(AssertionError, match="other values"):
        chaos.undisturbed(tmp_path, broken.corpus(tmp_path), RANKS, "weights zeroed")


@pytest.fixture
def finished(home, reference, tmp_path):
    """A copy of the undisturbed run, as a round that is over."""
    game = chaos.Round("kill", 0, [], RANKS, tmp_path / "whole")
    shutil.copytree(home / "whole", game.home)
    return game


def test_a_run_that_lost_nothing_holds(finished, reference):
    chaos.check(finished, reference, chaos.Told(True, ""))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("embedding.word_embeddings.weight", lambda tensor: tensor * 0),
        (
            "optimizer.state.exp_avg.embedding.word_embeddings.weight",
            lambda tensor: tensor * 1.0001,
        ),
    ],
)
def test_other_weights_or_moments_are_called_lost(finished, reference, monkeypatch, name, change):
    state = broken.saved_state(chaos.folder.newest(finished.run_dir))
    assert state[name].count_nonzero()
    monkeypatch.setattr(chaos, "saved_state", lambda path: state | {name: change(state[name])})
    with pytest.raises(AssertionError, match=f"other values: {name}"):
        chaos.check(finished, reference, chaos.Told(True, ""))


def test_a_checkpoint_that_was_called_saved_and_not_gone_on_from_is_called_lost(
    finished, reference
):
    finished.log.write_text("saved step_00000004\nresumed from step_00000002\n")
    with pytest.raises(AssertionError, match="4 was saved, but 2 resumed from"):
        chaos.check(finished, reference, chaos.Told(True, "", [2, 4]))


def test_state_that_differs_in_a_bit_a_type_or_a_name_is_not_the_same():
    state = {"weight": torch.tensor([1.0, -0.0])}
    assert not broken.differences(state, {"weight": torch.tensor([1.0, -0.0])})
    for other in (torch.tensor([1.0, 0.0]), torch.tensor([1.0, -0.0], dtype=torch.float64)):
        assert broken.differences(state, {"weight": other}) == "weight"
    assert broken.differences(state, {}) == broken.differences({}, state) == "weight"
