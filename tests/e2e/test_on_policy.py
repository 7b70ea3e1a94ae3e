"""On-policy distillation through the command line: it resumes to the bit, whatever the teacher."""

import re
import shutil
from contextlib import nullcontext

import broken
import chaos
import numpy as np
import pytest
import tiny
from ranks import RankError, run_ranks
from runs import arguments, paused_loads, power_cut, rows, run, told_by
from served_teacher import served

from megatron_qwen3 import train
from megatron_qwen3.config import load
from megatron_qwen3.posttrain import on_policy, scorers
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord, folder_of
from megatron_qwen3.posttrain.rollouts.rows import RolloutRows
from megatron_qwen3.training import engine
from megatron_qwen3.training.optim import state_tensors
from megatron_qwen3.training.stop import CONTINUE

METRICS = ("loss", "grad_norm", "entropy", "student_log_prob", "teacher_log_prob", "agreement")
MORE = ("train.steps=6", "eval.every_steps=3", "rollouts.held_out=0.2", "rollouts.keep_arrays=true")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of a short run on a few tasks, the half of which nobody can judge."""
    return [*broken.students(tmp_path_factory.mktemp("tasks")), *MORE]


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    home = tmp_path_factory.mktemp("whole")
    assert run_ranks(run, 2, arguments(settings, home)) == [0, 0]
    return home / "run"


def numbers(run_dir):
    return [[row[name] for name in METRICS] for row in rows(run_dir)]


def same(run_dir, other):
    """Whether two runs have the same losses, evaluations and rollouts, to the bit."""
    assert numbers(run_dir) == numbers(other)
    assert rows(run_dir, "eval") == rows(other, "eval")
    for batch in records.batches(other):
        one, two = (RolloutRecord.read(folder_of(home, batch)) for home in (run_dir, other))
        for name in ("ids", "log_probs", "sampled", "finish_N", "is_trained_N"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert one.state == two.state


def test_a_student_goes_towards_its_teacher_on_its_own_answers(whole):
    steps = rows(whole)
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] > 0 and 0 < row["entropy"] < 6 for row in steps)
    assert steps[-1]["loss"] < steps[0]["loss"]
    sampled = rows(whole, "rollouts")
    assert [row["step"] for row in sampled] == [1, 3, 5]
    assert not {"reward", "advantage", "zero_groups"} & set(sampled[0])
    tokens = 0
    for batch in records.batches(whole):
        record = RolloutRecord.read(folder_of(whole, batch))
        assert (record.versions_N2 == 2 * batch).all()
        assert record.is_trained_N.all() and len(record) == 16
        assert np.isnan(record.reward_N).sum() >= 4  # what has no verifier has no reward
        tokens += int(record.trained_tokens_N.sum())
        assert steps[2 * batch + 1]["tokens"] == tokens
    found = {(row["step"], row["source"]) for row in rows(whole, "eval")}
    assert {(3, "all"), (6, "all")} < found


@pytest.mark.parametrize("at_step", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_that_was_cut_off_goes_on_as_if_undisturbed(settings, whole, tmp_path, at_step):
    """In the middle of a batch, and at its start."""
    asked = arguments(settings, tmp_path, "checkpoint.every_steps=1")
    with pytest.raises(RankError, match="power cut"):
        run_ranks(power_cut, 2, asked, at_step)
    assert run_ranks(run, 2, asked) == [0, 0]
    same(tmp_path / "run", whole)


@pytest.mark.slow  # test_rl.py stops rollouts beside the quick tests
def test_a_stop_is_heard_between_the_passes_of_rollouts(settings, whole, tmp_path):
    asked = arguments(settings, tmp_path, "checkpoint.every_steps=50")
    assert run_ranks(broken.terminated, 2, asked, 2) == [CONTINUE] * 2
    assert records.batches(tmp_path / "run") == [0]
    assert run_ranks(run, 2, asked) == [0, 0]
    same(tmp_path / "run", whole)


def test_a_teacher_is_loaded_as_long_as_that_takes(settings, tmp_path):
    more = ("train.steps=1", "distill.updates=1", "eval.every_steps=0")
    assert run_ranks(paused_loads, 1, arguments(settings, tmp_path, *more)) == [[False]]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kill", "in save", "kill all"])
def test_a_run_that_is_killed_loses_no_bit(tmp_path, way):
    (result,) = chaos.play(tmp_path, 1, 7, 2, (way,), mode="distill")
    assert result.broke and not result.lost, result


def lengths_of_rows(arguments):
    """The length of rows of each update of a run."""
    of, lengths = RolloutRows.of.__func__, []

    def noting(cls, *args):
        made = of(cls, *args)
        lengths.append(made.length)
        return made

    RolloutRows.of = classmethod(noting)
    assert train.main(arguments) == 0
    return lengths


@pytest.mark.slow
def test_rows_can_be_shared_out_by_the_ranks_of_the_teacher(settings, tmp_path):
    """Answers of 28 places, that the student's own layout has in rows of any length."""
    more = ("rollouts.max_new_tokens=11", "rollouts.samples=1", "rollouts.prompts=2")
    asked = arguments(settings, tmp_path, *more, "distill.updates=1", "train.steps=4")
    lengths, _ = run_ranks(lengths_of_rows, 2, asked)
    assert len(lengths) == 4 and all(length % 2 == 0 for length in lengths)
    one = [*asked, "distill.teacher.tensor=1", "run.name=one"]
    lengths, _ = run_ranks(lengths_of_rows, 2, one)
    assert any(length % 2 for length in lengths)


@pytest.mark.slow
def test_neither_layout_changes_what_is_learnt(settings, whole, tmp_path):
    more = ("parallel.tensor=2", "distill.teacher.pipeline=2", "train.steps=2")
    assert run_ranks(run, 2, arguments(settings, tmp_path, *more)) == [0, 0]
    for ours, theirs in zip(numbers(tmp_path / "run"), numbers(whole), strict=False):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def noting(arguments):
    """A run, and whenever one side is at work the bytes in memory of the teacher's weights and of
    the optimizer's state."""
    sides, notes = [], []
    begin, score, step = (
        scorers.OwnScorer.__init__,
        scorers.Teacher.scores,
        engine.Engine.train_step,
    )

    def note(what):
        ((scorer, student),) = sides
        sizes = [x.untyped_storage().nbytes() for x in scorer._tensors()]
        states = [x.untyped_storage().nbytes() for x in state_tensors(student.optimizer)]
        notes.append((what, sum(sizes), sum(states)))

    def begun(self, config, layout, student):
        begin(self, config, layout, student)
        sides.append((self, student))

    def scoring(self, *args):
        note("score")
        return score(self, *args)

    def stepping(self, *args):
        note("update")
        return step(self, *args)

    scorers.OwnScorer.__init__, scorers.Teacher.scores = begun, scoring
    engine.Engine.train_step = stepping
    return train.main(arguments), notes


def test_a_teacher_that_takes_turns_is_the_same_and_never_there_beside_the_optimizer(
    settings, whole, tmp_path
):
    asked = arguments(settings, tmp_path, "distill.teacher.in_turns=true")
    for status, notes in run_ranks(noting, 2, asked):
        assert status == 0 and [what for what, *_ in notes] == ["score", "update"] * 6
        for what, weights, state in notes:
            assert (weights > 0, state > 0) == (what == "score", what == "update")
    same(tmp_path / "run", whole)


@pytest.mark.parametrize(
    "divergence", ["reverse_kl", pytest.param("sampled", marks=pytest.mark.slow)]
)
def test_a_served_teacher_is_asked_once_of_each_answer(settings, tmp_path, divergence):
    """A run that is cut off in mid-batch reads stored scores; nothing is asked again."""
    more = ["distill.teacher.path=", f"distill.divergence={divergence}", "checkpoint.every_steps=1"]
    more += ["distill.top_k=5"] if divergence == "reverse_kl" else []
    with served(320) as (address, bodies):
        asked = arguments(settings, tmp_path, *more, f"distill.teacher.url={address}")
        with pytest.raises(RankError, match="power cut"):
            run_ranks(power_cut, 2, asked, 4)
        assert run_ranks(run, 2, asked) == [0, 0]
        assert len(bodies) == 3 * 16 + 2  # and once at each start
    for row in rows(tmp_path / "run"):
        assert np.isfinite([row[name] for name in METRICS]).all() and row["teacher_log_prob"] < 0


def test_a_teacher_without_weights_is_told_before_any_rank_starts(settings, tmp_path, capsys):
    path = next(s for s in settings if s.startswith("distill.teacher.path=")).partition("=")[2]
    shutil.copytree(path, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    asked = arguments(settings, tmp_path, f"distill.teacher.path={tmp_path}/empty")
    assert train.main(asked) == 2
    assert f"error: distill.teacher.path: {tmp_path}/empty: neither model.safetensors" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_its_teacher_wherever_its_files_are(settings, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    path = next(s for s in settings if s.startswith("distill.teacher.path=")).partition("=")[2]
    copied, other = tmp_path / "copied", tmp_path / "other"
    shutil.copytree(path, copied, copy_function=shutil.copyfile)  # with times of its own
    asked = arguments(settings, tmp_path, "train.steps=9")
    on_policy.check(load([], [*asked, f"distill.teacher.path={copied}"]))
    tiny.save(other, seed=5)
    assert train.main([*asked, f"distill.teacher.path={other}"]) == 2
    told = capsys.readouterr().err
    assert (
        f"distill.teacher.path = {other} has other weights than the model that {tmp_path}/ru"
        in told
    )
    assert "which a run keeps: set that one; with another run.name, checkpoint.init_from" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (None, "cannot be reached"),
        (lambda reply, body: b"<html>", "does not speak OpenAI's protocol"),
        (lambda reply, body: {"choices": [{"text": "x"}]}, "the reply has no prompt_logprobs"),
    ],
)
def test_a_served_teacher_that_does_not_answer_is_told_before_anything_is_sampled(
    settings, tmp_path, change, told
):
    with served(320, change) if change else nullcontext(("http://127.0.0.1:9/v1", [])) as (at, _):
        more = ["distill.teacher.path=", f"distill.teacher.url={at}#big", "distill.top_k=5"]
        ((status, said),) = run_ranks(told_by, 1, arguments(settings, tmp_path, *more))
    assert status == 2 and f"error: distill.teacher.url = {at}" in said and told in said
    assert not (tmp_path / "run" / "rollouts").exists()


def test_a_teacher_with_another_tokenizer_is_refused(settings, tmp_path, capsys):
    path = next(s for s in settings if s.startswith("distill.teacher.path=")).partition("=")[2]
    shutil.copytree(path, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    asked = arguments(settings, tmp_path, f"distill.teacher.path={tmp_path}/other")
    assert train.main(asked) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert re.search("other has another tokenizer .* than data.tokenizer = ", told)
    assert not (tmp_path / "run").exists()
