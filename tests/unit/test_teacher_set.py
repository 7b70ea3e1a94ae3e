"""A teacher's targets on the disk: whole or not at all, bound to a set, resumed part by part."""

import json
import shutil

import numpy as np
import pytest

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.teachers import teacher_set
from megatron_qwen3.posttrain.teachers.teacher_set import Targets, TeacherSet, trained_labels, write
from tests.dialog_sets import random_samples, write_set

VOCABULARY, K = 50, 4
ABOUT = {"teacher": "big", "temperature": 1.0, "vocab_size": VOCABULARY}


def make_set(prefix, seed=0):
    """A set of 23 short samples; of the last three no label is trained."""
    samples = random_samples(20, seed=seed, vocab_size=VOCABULARY, longest=12)
    samples += [(ids, np.arange(len(ids)) < 1) for ids, _ in samples[:3]]
    return write_set(prefix, samples, vocab_size=VOCABULARY)


def targets_of(sample):
    """Targets that depend on the sample's ids and on the place of the label."""
    labels = trained_labels(sample)
    seeds = sample.ids[labels] * 1000 + labels
    logits = np.stack([np.random.default_rng(s).normal(size=VOCABULARY) for s in seeds] or [[]])
    logits = logits.reshape(len(labels), VOCABULARY)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    order = np.argsort(-log_p, 1)
    best = np.take_along_axis(log_p, order, 1)
    rest = np.log(np.exp(best[:, K:]).sum(1))
    return Targets(order[:, :K].astype(np.int32), best[:, :K].astype("f4"), rest.astype("f4"))


def score(samples):
    return [targets_of(sample) for sample in samples]


def assert_same(got, expected):
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(teacher_set, "PART_LABELS", 10)


def test_each_sample_has_the_targets_of_its_trained_labels(tmp_path, small_parts):
    dialogs, told = make_set(tmp_path / "chat"), []
    folder = write(dialogs, ABOUT, K, score, told.append)
    assert sum(told) == len(dialogs) and folder == tmp_path / "chat.teacher"
    parts = sorted(path.name for path in folder.iterdir())
    assert len([name for name in parts if name.startswith("part_")]) > 3
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
    found = TeacherSet(dialogs)
    assert (found.top_k, found.teacher, found.temperature) == (K, "big", 1.0)
    for n in range(len(dialogs)):
        assert_same(found.read(n, K), targets_of(dialogs.read(n)))


def test_what_was_begun_with_other_parts_goes_on_with_them(tmp_path, small_parts):
    dialogs = make_set(tmp_path / "chat")

    def stops(samples):
        if len(stopped) == 2:
            raise KeyboardInterrupt
        stopped.append(samples)
        return score(samples)

    for part_labels in (10, None):
        stopped = []
        with pytest.raises(KeyboardInterrupt):
            write(dialogs, ABOUT, K, stops, part_labels=part_labels)
        begun = tmp_path / "chat.teacher.partial/teacher.json"
        content = json.loads(begun.read_text())
        assert content.pop("part_labels") == 10
        begun.write_text(json.dumps(content))  # as one that says nothing of its parts
        write(dialogs, ABOUT, K, score, part_labels=7)
        for n in range(len(dialogs)):
            assert_same(TeacherSet(dialogs).read(n, K), targets_of(dialogs.read(n)))
        shutil.rmtree(tmp_path / "chat.teacher")


def test_fewer_ids_than_were_stored_leave_more_to_the_rest(tmp_path):
    dialogs = make_set(tmp_path / "chat")
    write(dialogs, ABOUT, K, score)
    for n in range(len(dialogs)):
        whole, few = targets_of(dialogs.read(n)), TeacherSet(dialogs).read(n, 2)
        np.testing.assert_array_equal(few.ids, whole.ids[:, :2])
        left = 1 - np.exp(few.log_probs.astype("f8")).sum(1)
        np.testing.assert_allclose(np.exp(few.log_rest), left, rtol=1e-5)


def test_what_a_killed_one_scored_is_not_scored_again_and_the_bytes_are_the_same(
    tmp_path, small_parts
):
    whole = make_set(tmp_path / "whole")
    expected = write(whole, ABOUT, K, score)
    dialogs, asked = make_set(tmp_path / "chat"), []

    def dies(samples):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(len(samples))
        return score(samples)

    with pytest.raises(KeyboardInterrupt):
        write(dialogs, ABOUT, K, dies)
    with pytest.raises(ConfigError, match="chat.teacher/teacher.json does not exist.*teacher SET"):
        TeacherSet(dialogs)
    again = []
    folder = write(dialogs, ABOUT, K, lambda samples: again.append(len(samples)) or score(samples))
    assert sum(asked) + sum(again) == len(dialogs) and len(asked) == 3
    for path in expected.iterdir():
        mine = (folder / path.name).read_bytes()
        if path.name != "teacher.json":
            assert mine == path.read_bytes(), path.name


def test_a_begun_one_goes_on_with_the_same_teacher_only(tmp_path):
    dialogs = make_set(tmp_path / "chat")

    def dies(samples):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(dialogs, ABOUT, K, dies)
    with pytest.raises(ConfigError, match="was begun with teacher = 'big', now 'small'; go on as"):
        write(dialogs, {**ABOUT, "teacher": "small"}, K, score)
    with pytest.raises(ConfigError, match="was begun with top_k = 4, now 3"):
        write(dialogs, ABOUT, 3, score)
    write(dialogs, ABOUT, K, score)
    with pytest.raises(ConfigError, match="chat.teacher exists; remove it to have"):
        write(dialogs, ABOUT, K, score)


def test_targets_of_another_set_are_refused(tmp_path):
    dialogs = make_set(tmp_path / "chat")
    write(dialogs, ABOUT, K, score)
    other = make_set(tmp_path / "chat", seed=1)
    with pytest.raises(ConfigError, match="belongs to another set than .*fingerprint is"):
        TeacherSet(other)


@pytest.mark.parametrize("name", ["part_00000.npy", "samples.npy", "parts.npy", "teacher.json"])
@pytest.mark.parametrize("harm", ["gone", "short", "other"])
def test_damaged_targets_are_refused_in_one_line(tmp_path, name, harm):
    dialogs = make_set(tmp_path / "chat")
    path = write(dialogs, ABOUT, K, score) / name
    content = path.read_bytes()
    path.unlink()
    if harm == "short":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "other":
        path.write_bytes(json.dumps({"version": 1}).encode())
    with pytest.raises(ConfigError) as error:
        TeacherSet(dialogs)
    assert "\n" not in str(error.value) and "chat.teacher" in str(error.value)


def test_targets_of_another_shape_stop_the_writing(tmp_path):
    dialogs = make_set(tmp_path / "chat")
    with pytest.raises(ValueError, match="targets of shape"):
        write(dialogs, ABOUT, K + 1, score)
