"""Off-policy distillation through the command line: a teacher in memory, or its stored targets."""

import argparse
import re

import dialog_sets
import numpy as np
import pytest
from ranks import RankError, run_ranks
from runs import power_cut, rows, run

from data_prep import tokenizer
from data_prep.fingerprint import file_sha256
from megatron_qwen3 import train
from megatron_qwen3.cli import teacher_targets
from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSet
from megatron_qwen3.posttrain.teachers.own_teacher import OwnTeacher, Scoring
from megatron_qwen3.posttrain.teachers.teacher_set import TeacherSet, trained_labels, write

LENGTH, BATCH, STEPS, K = 32, 4, 20, 8
METRICS = ("loss", "kl", "cross_entropy", "teacher_mass", "student_mass", "grad_norm")


def scored(prefixes, teacher, top_k, temperature, *settings):
    """Have a teacher score sets, on all ranks; how many samples the first one stored."""
    scoring, done = Scoring(rows=5, local=settings), []
    with OwnTeacher(teacher, top_k, temperature, scoring) as scorer:
        if not scorer.leads:
            scorer.follow()
            return 0
        for prefix in prefixes:
            write(DialogSet(prefix), scorer.about, top_k, scorer.score, done.append)
    return sum(done)


def commanded(prefix, teacher, *settings):
    """The same by the command, of one set."""
    parser = argparse.ArgumentParser()
    teacher_targets.add_arguments(parser)
    asked = [str(prefix), "--teacher", str(teacher), "--top-k", str(K), "--rows", "2"]
    return teacher_targets.run(parser.parse_args([*asked, *settings]))


class School:
    """Two sets of dialogs, and a teacher that was trained on them."""

    def __init__(self, home):
        self.home, self.tokenizer = home, home / "tokenizer"
        tokenizer.train(["a few words to make tokens of"] * 3, 290, self.tokenizer)
        sha256 = file_sha256(str(self.tokenizer / "tokenizer.json"))
        lengths = np.random.default_rng(0).integers(2, LENGTH + 2, (2, 40))
        self.prefixes = [home / name for name in "ab"]
        for seed, prefix in enumerate(self.prefixes):
            dialog_sets.write(prefix, lengths[seed].tolist(), seed, tokenizer=sha256)
        self.teacher = home / "runs" / "teacher"
        more = ("train.steps=15", "optim.lr=1e-2", "optim.min_lr=1e-2", "checkpoint.every_steps=0")
        asked = self.arguments("teacher", *more)
        assert run_ranks(run, 1, asked) == [0]

    def arguments(self, name, *more):
        sources = [{"name": p.name, "path": str(p)} for p in self.prefixes]
        return [
            *dialog_sets.settings(*sources, length=LENGTH, batch=BATCH),
            "model.preset=tiny-dense",
            "model.num_layers=2",
            f"data.tokenizer={self.tokenizer}",
            f"run.dir={self.home}/runs",
            f"run.name={name}",
            "sft.held_out=0.0",
            f"train.steps={STEPS}",
            "checkpoint.every_steps=10",
            "optim.lr=3e-3",
            *more,
        ]

    def student(self, name, objective, *more, path="{dir}/teacher"):
        asked = [f"sft.objective={objective}", f"sft.teacher.top_k={K}", "run.seed=7", *more]
        if path:
            asked.append(f"sft.teacher.path={path}")
        return self.arguments(name, *asked)


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    school = School(tmp_path_factory.mktemp("school"))
    (count,) = run_ranks(scored, 1, school.prefixes, school.teacher, K + 3, 1.0)
    assert count == 80
    return school


@pytest.fixture(scope="module")
def in_memory(school):
    """The rows of a student of the teacher in memory."""
    assert run_ranks(run, 1, school.student("in_memory", "both")) == [0]
    return rows(school.home / "runs" / "in_memory")


def same(ours, theirs, rel):
    for mine, other in zip(ours, theirs, strict=True):
        for name in METRICS:
            assert mine[name] == pytest.approx(other[name], rel=rel, abs=1e-6), (mine["step"], name)


def test_the_students_kl_to_its_teacher_falls(in_memory):
    kl = [row["kl"] for row in in_memory]
    assert all(row["kl"] > 0 for row in in_memory)
    assert np.mean(kl[-3:]) < 0.7 * np.mean(kl[:3])
    assert in_memory[0]["teacher_mass"] > 2 * in_memory[0]["student_mass"]
    assert in_memory[-1]["student_mass"] > 1.5 * in_memory[0]["student_mass"]
    for row in in_memory:
        assert row["loss"] == pytest.approx(0.5 * row["kl"] + 0.5 * row["cross_entropy"], rel=1e-5)


def test_stored_targets_train_as_the_teacher_in_memory_does(school, in_memory):
    assert run_ranks(run, 2, school.student("stored", "both", path="")) == [0, 0]
    found = rows(school.home / "runs" / "stored")
    same(found[:5], in_memory[:5], rel=1e-4)
    same(found, in_memory, rel=5e-3)  # rounding grows from step to step


LAYOUTS = {
    "teacher-tp2-student-dp2": (2, ("sft.teacher.tensor=2",)),
    "teacher-pp2-student-dp2": (2, ("sft.teacher.pipeline=2",)),
    "teacher-dp2-student-pp2": (2, ("parallel.pipeline=2",)),
    "both-dp2": (2, ()),
    "teacher-dp4-student-tp2-pp2": (4, ("parallel.tensor=2", "parallel.pipeline=2")),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=[] if n == "teacher-dp2-student-pp2" else pytest.mark.slow)
        for n in LAYOUTS
    ],
)
def test_neither_layout_changes_what_is_learnt(school, in_memory, name):
    ranks, settings = LAYOUTS[name]
    asked = school.student(name, "both", "train.steps=5", *settings)
    assert run_ranks(run, ranks, asked) == [0] * ranks
    same(rows(school.home / "runs" / name), in_memory[:5], rel=1e-4)


@pytest.mark.slow
def test_a_sparse_teacher_teaches_alike_with_its_experts_on_two_ranks(school):
    sparse = school.arguments(
        "sparse", "model.preset=tiny-moe", "train.steps=6", "optim.lr=2e-2", "optim.min_lr=2e-2"
    )
    assert run_ranks(run, 1, sparse) == [0]
    more = ("train.steps=4", "sft.teacher.temperature=2", "optim.z_loss=1e-4")
    for name, ranks, layout in (("whole", 1, ()), ("apart", 2, ("sft.teacher.expert=2",))):
        asked = school.student(name, "both", *more, *layout, path="{dir}/sparse")
        assert run_ranks(run, ranks, asked) == [0] * ranks
    apart, whole = (rows(school.home / "runs" / name) for name in ("apart", "whole"))
    same(apart, whole, rel=1e-4)
    for row in whole:
        parts = 0.5 * row["kl"] + 0.5 * row["cross_entropy"]
        assert row["loss"] == pytest.approx(parts + row["z_loss"], rel=1e-5) and row["z_loss"] > 0


@pytest.mark.slow
def test_a_student_that_was_cut_off_goes_on_to_the_bit(school, in_memory):
    asked = school.student("cut", "both")
    with pytest.raises(RankError, match="power cut"):
        run_ranks(power_cut, 1, asked, 11)
    assert run_ranks(run, 1, asked) == [0]
    found = rows(school.home / "runs" / "cut")
    for mine, other in zip(found, in_memory, strict=True):
        assert {name: mine[name] for name in METRICS} == {name: other[name] for name in METRICS}


def test_what_a_teacher_stores_depends_on_no_layout(school, tmp_path):
    """Records of two ranks that split its matrices, or rows, equal those of one."""
    layouts = {"tp2": ("--local", "parallel.tensor=2"), "dp2": ()}
    layouts["cp2"] = ("--local", "parallel.context=2")
    for name, settings in layouts.items():
        prefix = tmp_path / name
        for path in school.home.glob("a.*"):
            if path.is_file():
                (tmp_path / path.name.replace("a.", f"{name}.", 1)).write_bytes(path.read_bytes())
        assert run_ranks(commanded, 2, prefix, school.teacher, *settings) == [0, 0]
        ours, theirs = TeacherSet(DialogSet(prefix)), TeacherSet(DialogSet(school.prefixes[0]))
        for n in range(40):
            mine, other = ours.read(n, K), theirs.read(n, K)
            np.testing.assert_allclose(mine.log_probs, other.log_probs, atol=2e-5)
            np.testing.assert_allclose(mine.log_rest, other.log_rest, atol=2e-5)
            swapped = (mine.ids != other.ids).any(1).mean() if len(mine.ids) else 0
            assert swapped < 0.2  # of nearly equal ones two may change places
            assert len(mine.ids) == len(trained_labels(DialogSet(prefix).read(n)))


@pytest.mark.parametrize(
    ("objective", "path", "more", "says"),
    [
        ("both", "", ["sft.teacher.top_k=12"], "top_k = 12, but .* holds 11 ids of each token"),
        ("both", "", ["sft.teacher.temperature=2"], "temperature = 2, but .* was scored at 1"),
        ("soft_targets", "{dir}/none", [], "sft.teacher: .*none is no checkpoint"),
        ("both", "{dir}/teacher", ["model.vocab_size=500"], "512 tokens, more than"),
        (
            "both",
            "{dir}/teacher",
            ["sft.teacher.tensor=3"],
            "sft.teacher.tensor = 3 does not divide",
        ),
        (
            "both",
            "{dir}/teacher",
            ["sft.teacher.tensor=2"],
            "1 ranks is no multiple of sft.teacher.tensor",
        ),
        ("cross_entropy", "{dir}/teacher", [], 'goes with sft.objective = "soft_targets" or'),
    ],
)
def test_a_teacher_that_does_not_fit_is_told_before_any_rank_starts(
    school, capsys, objective, path, more, says
):
    assert train.main(school.student("wrong", objective, *more, path=path)) == 2
    assert re.search(says, " ".join(capsys.readouterr().err.split()))
    assert not (school.home / "runs" / "wrong").exists()


def test_an_objective_with_a_teacher_needs_one(school, tmp_path, capsys):
    bare = dialog_sets.write(tmp_path / "bare", [9, 20], tokenizer="1" * 64)
    source = f"sft.sources=[{{name='bare', path='{bare}'}}]"
    asked = school.student("bare", "soft_targets", source, "data.tokenizer=", path="")
    assert train.main(asked) == 2
    told = capsys.readouterr().err
    assert (
        "bare.teacher/teacher.json does not exist" in told and "--teacher MODEL writes it" in told
    )
    asked = school.student("bare", "soft_targets", source, "data.tokenizer=")
    assert train.main(asked) == 2
    assert "has another tokenizer (sha256" in capsys.readouterr().err
