"""vLLM as a teacher, over real HTTP: the ids that were sent are those that are scored."""

import numpy as np
import pytest
import served_teacher

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSample
from megatron_qwen3.posttrain.generators.settings import EndpointLimits
from megatron_qwen3.posttrain.teachers.endpoint_teacher import EndpointTeacher
from megatron_qwen3.posttrain.teachers.teacher_set import TeacherSet, write
from tests.dialog_sets import write_set

VOCABULARY, K = 30, 3
SOON = EndpointLimits(concurrency=2, tries=2, seconds=5.0, first_wait=0.01)


def log_p_after(ids):
    return served_teacher.log_p_after(ids, VOCABULARY)


def served(*change):
    return served_teacher.served(VOCABULARY, *change)


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    return str(path)


def samples():
    random = np.random.default_rng(3)
    for length in (2, 9, 5, 1):
        ids = random.integers(0, VOCABULARY, length)
        yield DialogSample(ids, random.random(length) < 0.6)


def test_targets_are_what_the_server_says_of_the_trained_labels(tokenizer):
    with (
        served() as (address, bodies),
        EndpointTeacher(address, tokenizer, VOCABULARY, K, SOON) as teacher,
    ):
        given = list(samples())
        found = teacher.score(given)
        assert teacher.about["teacher"] == f"{address}#big"
    for sample, targets in zip(given, found, strict=True):
        labels = np.flatnonzero(sample.trained[1:]) + 1
        assert targets.ids.shape == (len(labels), K) and targets.ids.dtype == np.int32
        for row, place in enumerate(labels):
            log_p = log_p_after(sample.ids[:place].tolist())
            order = np.argsort(-log_p)
            assert targets.ids[row].tolist() == order[:K].tolist()
            np.testing.assert_allclose(targets.log_probs[row], log_p[order[:K]], rtol=1e-6)
            rest = np.log(np.exp(log_p[order[K:]]).sum())
            np.testing.assert_allclose(targets.log_rest[row], rest, rtol=1e-5)
    sent = sorted(body["prompt"] for _, body in bodies)
    assert sent == sorted(sample.ids.tolist() for sample in given if sample.trained[1:].any())
    path, body = bodies[0]
    assert path == "/v1/completions" and body["model"] == "big" and body["max_tokens"] == 1
    assert body["prompt_logprobs"] == K and body["return_token_ids"] is True


def test_what_it_says_of_the_labels_themselves_is_told_with_their_targets(tokenizer):
    with (
        served() as (address, _),
        EndpointTeacher(address, tokenizer, VOCABULARY, 1, SOON) as teacher,
    ):
        given = list(samples())
        found = teacher.told(given)
    assert sum(len(told.label_log_probs) for told in found) > 4
    for sample, told in zip(given, found, strict=True):
        labels = np.flatnonzero(sample.trained[1:]) + 1
        said = [log_p_after(sample.ids[:n].tolist())[sample.ids[n]] for n in labels]
        np.testing.assert_allclose(told.label_log_probs, said, rtol=1e-6)
        assert told.label_log_probs.dtype == np.float32 and len(told.targets.ids) == len(labels)


def without(reply, name):
    del reply["choices"][0][name]
    return reply


def with_row(reply, row):
    reply["choices"][0]["prompt_logprobs"][1] = row
    return reply


def other_ids(reply, body):
    reply["choices"][0]["prompt_token_ids"] = [0, *body["prompt"]]
    return reply


SPOILED = {
    "none": (lambda reply, body: None, "the reply has no prompt_logprobs"),
    "html": (lambda reply, body: b"<html>busy</html>", "no JSON"),
    "no-prompt-logprobs": (lambda r, b: without(r, "prompt_logprobs"), "the endpoint is no vLLM"),
    "other-ids": (other_ids, "came back, or others: it retokenizes"),
    "another-id-there": (
        lambda r, b: with_row(r, {"29": {"logprob": -1.0}}),
        "prompt_logprobs of token 1 say nothing of",
    ),
    "too-few": (
        lambda r, b: with_row(r, {str(b["prompt"][1]): {"logprob": -1.0}}),
        "prompt_logprobs of token 1 are 1, 3 were asked for",
    ),
    "no-number": (
        lambda r, b: with_row(r, {str(b["prompt"][1]): {"logprob": None}}),
        "a log-probability is None",
    ),
    "positive": (
        lambda r, b: with_row(r, {str(b["prompt"][1]): {"logprob": 0.5}}),
        "a log-probability is 0.5",
    ),
    "beyond-all-numbers": (
        lambda r, b: with_row(r, {str(b["prompt"][1]): {"logprob": -(10**400)}}),
        "a log-probability is -1000",
    ),
    "no-id": (
        lambda r, b: with_row(
            r, {str(b["prompt"][1]): {"logprob": -1.0}, "1" * 5000: {"logprob": -1.0}}
        ),
        "which is no id",
    ),
    "beyond": (
        lambda r, b: with_row(
            r, {str(n): {"logprob": -1.0} for n in (b["prompt"][1], 998, 999, 1000)}
        ),
        "it answers with id 9.*, of a vocabulary of 30",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_reply_that_is_none_or_of_other_ids_stops_with_its_reason(name, tokenizer):
    change, reason = SPOILED[name]
    ids = np.array([5, 7, 9])
    with (
        served(change) as (address, _),
        EndpointTeacher(address, tokenizer, VOCABULARY, K, SOON) as teacher,
        pytest.raises(ConfigError, match=f"{reason}.*start again to go on"),
    ):
        teacher.score([DialogSample(ids, np.array([False, True, True]))])


def refuses(first):
    """Replies of a server that does not take samples that begin with these ids."""
    return lambda reply, body: 400 if body["prompt"][0] in first else reply


def test_samples_that_are_refused_do_not_cost_the_others(tokenizer, tmp_path):
    random = np.random.default_rng(5)
    pairs = []
    for n in range(12):
        ids = random.integers(0, VOCABULARY, 6)
        ids[0] = n
        pairs.append((ids, np.ones(6, bool)))
    dialogs = write_set(tmp_path / "chat", pairs, vocab_size=VOCABULARY)

    def write_all(address):
        with EndpointTeacher(address, tokenizer, VOCABULARY, K, SOON) as teacher:
            return write(dialogs, teacher.about, K, teacher.score, part_labels=10)

    change = [refuses({3, 8})]
    with served(lambda reply, body: change[0](reply, body)) as (address, bodies):
        with pytest.raises(ConfigError, match="2 of 12 samples are refused.*status 400"):
            write_all(address)
        assert {body["prompt"][0] for _, body in bodies} == set(range(12))
        change[0] = refuses(())
        bodies.clear()
        write_all(address)
        assert {body["prompt"][0] for _, body in bodies} == {2, 3, 8, 9}
        TeacherSet(dialogs).read(3, K)


def test_a_server_that_refuses_all_samples_is_asked_for_no_more(tokenizer, tmp_path):
    pairs = [(np.full(6, n), np.ones(6, bool)) for n in range(12)]
    dialogs = write_set(tmp_path / "chat", pairs, vocab_size=VOCABULARY)
    with (
        served(refuses(set(range(12)))) as (address, bodies),
        EndpointTeacher(address, tokenizer, VOCABULARY, K, SOON) as teacher,
        pytest.raises(ConfigError, match="does not score a sample: status 400"),
    ):
        write(dialogs, teacher.about, K, teacher.score, part_labels=10)
    assert len(bodies) == 2


def test_a_server_that_is_gone_is_said(tokenizer):
    with served() as (address, _):
        teacher = EndpointTeacher(address, tokenizer, VOCABULARY, K, SOON).__enter__()
    with pytest.raises(ConfigError, match=r"does not score a sample: .*2 tries"):
        teacher.score(list(samples()))
