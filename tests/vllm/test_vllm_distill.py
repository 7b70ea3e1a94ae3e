"""Mode distill with vLLM on both sides: a student that servers sample, and a served teacher."""

import broken
import numpy as np
import pytest
import runs
import tiny
from ranks import run_ranks
from serving import HEAD, SECONDS, prepare, settings_of, teacher_of, theirs

from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSample
from megatron_qwen3.posttrain.generators.settings import EndpointLimits
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord, folder_of
from megatron_qwen3.posttrain.rollouts.record_files import read_arrays
from megatron_qwen3.posttrain.scorers import TEACHER_FILE
from megatron_qwen3.posttrain.teachers.endpoint_teacher import EndpointTeacher

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(SECONDS)]
VOCABULARY, K = 320, 5


@pytest.fixture(scope="module")
def teacher(python, tmp_path_factory):
    """Its folder, and its address."""
    home = tmp_path_factory.mktemp("teacher")
    tiny.save(home / "model", head_dim=HEAD)
    with teacher_of(home / "model", python, home, most_log_probs=K) as address:
        yield home / "model", address


def test_a_served_teacher_says_what_transformers_says_of_the_same_ids(teacher):
    folder, address = teacher
    random = np.random.default_rng(0)
    asked = [random.integers(VOCABULARY, size=length) for length in (90, 7, 41)]
    samples = [DialogSample(ids, random.random(len(ids)) < 0.7) for ids in asked]
    with EndpointTeacher(address, str(folder), VOCABULARY, K, EndpointLimits()) as served:
        told = served.told(samples)
    for sample, one, expected in zip(samples, told, theirs(folder, asked), strict=True):
        of_trained = np.array(expected)[sample.trained[1:]]
        assert len(of_trained) and one.targets.ids.shape == (len(of_trained), K)
        np.testing.assert_allclose(one.label_log_probs, of_trained, atol=1e-4)
        mass = np.exp(one.targets.log_probs).sum(1) + np.exp(one.targets.log_rest)
        np.testing.assert_allclose(mass, 1, atol=1e-5)


def run(asked):
    prepare()
    return runs.run(asked)


def test_a_student_that_servers_sample_learns_from_a_served_teacher(teacher, python, tmp_path):
    folder, address = teacher
    (tmp_path / "tasks").mkdir()
    more = ["train.steps=4", "distill.teacher.path=", f"distill.teacher.url={address}"]
    more += [f"distill.top_k={K}", f"data.tokenizer={folder}", "rollouts.keep_arrays=true"]
    settings = [*broken.students(tmp_path / "tasks"), *more, *settings_of(python)]
    asked = runs.arguments(settings, tmp_path)
    assert run_ranks(run, 1, asked, timeout_seconds=SECONDS) == [0]
    steps, sampled = (runs.rows(tmp_path / "run", kind) for kind in ("train", "rollouts"))
    assert [row["step"] for row in steps] == [1, 2, 3, 4] and len(sampled) == 2
    assert all(row["loss"] > 0 and row["teacher_log_prob"] < 0 for row in steps)
    assert all(0 <= row["refit/difference"] < 1e-4 for row in sampled)
    assert len({row["refit/checksum"] for row in sampled}) == 2, "the student has not moved"
    for number in records.batches(tmp_path / "run"):
        at = folder_of(tmp_path / "run", number)
        record = RolloutRecord.read(at)
        assert (record.versions_N2 == 2 * number).all()
        said = read_arrays(at / TEACHER_FILE, ("log_prob",))["log_prob"]
        asked_N = np.flatnonzero(record.trained_tokens_N)
        expected = theirs(folder, [[*record.prompt(n), *record.tokens(n)] for n in asked_N])
        for n, log_probs in zip(asked_N, expected, strict=True):
            of_answer = log_probs[len(record.prompt(n)) - 1 :]
            np.testing.assert_allclose(said[record.places(n)], of_answer, atol=1e-4)
