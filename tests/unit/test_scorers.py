"""A teacher's scores of a batch of rollouts lie beside its record, and are that batch's."""

import contextlib

import numpy as np
import pytest
import records as made
import served_teacher

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.posttrain import scorers
from megatron_qwen3.posttrain.rollouts.record import folder_of
from megatron_qwen3.posttrain.rollouts.rows import RolloutRows
from megatron_qwen3.posttrain.scorers import TEACHER_FILE, ServedScorer, without_unknown

K, VOCABULARY = 3, 320


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """The first rank of one."""
    monkeypatch.setattr(scorers, "of_first", lambda do: do())


def config_of(tmp_path, address, *more):
    (tmp_path / "tokenizer.json").write_text("{}")
    base = ["run.mode=distill", "train.steps=1", "model.preset=tiny-dense", f"run.dir={tmp_path}"]
    base += [f"distill.teacher.url={address}", f"distill.top_k={K}", "run.name=run"]
    base += [f"model.vocab_size={VOCABULARY}", f"data.tokenizer={tmp_path}"]
    return load([], [*base, *more])


def rows_of(record):
    trained = np.flatnonzero(record.trained_tokens_N).tolist()
    return RolloutRows.of(record, trained, length=64, ranks=1)


def test_each_sampled_token_is_a_label_with_what_the_teacher_says_of_its_place(tmp_path):
    record = made.of_batch(1)
    with served_teacher.served(VOCABULARY) as (address, bodies):
        config = config_of(tmp_path, address)
        folder = folder_of(config.run_dir, 1)
        record.write(folder)
        rows = rows_of(record)
        batch = ServedScorer(config, 0).batch(record, rows)
        asked = len(bodies)
        assert asked == len(rows.rollouts)
        again = ServedScorer(config, 0).batch(record, rows)  # as a run that is resumed
        assert len(bodies) == asked
    assert batch.weights_BS.sum() == record.trained_tokens_N.sum()
    for name, x in batch.extra.items():
        assert again.extra[name].equal(x), name
    checked = 0
    for row, members in enumerate(rows.members):
        end = 0
        for n in members:
            ids = [*record.prompt(n).tolist(), *record.tokens(n).tolist()]
            for place in range(len(record.prompt(n)), len(ids)):
                here = end + place - 1
                if not batch.weights_BS[row, here]:
                    continue
                log_p = served_teacher.log_p_after(ids[:place], VOCABULARY)
                best = np.argsort(-log_p)[:K]
                told = {name: x[row, here].numpy() for name, x in batch.extra.items()}
                assert told["ids"].tolist() == best.tolist()
                np.testing.assert_allclose(told["teacher_log_probs"], log_p[best], rtol=1e-5)
                np.testing.assert_allclose(told["teacher_log_prob"], log_p[ids[place]], rtol=1e-5)
                rest = np.log1p(-np.exp(log_p[best]).sum())
                np.testing.assert_allclose(told["teacher_log_rest"], rest, rtol=1e-4)
                checked += 1
            end += len(ids) - 1
    assert checked == record.trained_tokens_N.sum()


def test_the_time_of_a_served_teacher_is_no_hang(tmp_path, monkeypatch):
    """It has limits of its own: so many tries of so many seconds."""
    record, paused, asked = made.of_batch(1), [], scorers.ServedScorer._ask_about
    looks = []

    @contextlib.contextmanager
    def waiting():
        paused.append(None)
        yield
        paused.pop()

    def looking(self, *args):
        looks.append(len(paused))
        return asked(self, *args)

    monkeypatch.setattr(scorers.ServedScorer, "_ask_about", looking)
    monkeypatch.setattr(scorers, "_AT_ONCE", 1)
    with served_teacher.served(VOCABULARY) as (address, _):
        config = config_of(tmp_path, address)
        record.write(folder_of(config.run_dir, 1))
        ServedScorer(config, 0, waiting=waiting).batch(record, rows_of(record))
    assert looks == [1] * len(rows_of(record).rollouts) and not paused


def test_what_another_teacher_said_is_asked_again(tmp_path, capsys):
    record = made.of_batch(1)
    with served_teacher.served(VOCABULARY) as (first, _):
        config = config_of(tmp_path, first)
        record.write(folder_of(config.run_dir, 1))
        ServedScorer(config, 0).batch(record, rows_of(record))
    with served_teacher.served(VOCABULARY) as (second, bodies):
        config = config_of(tmp_path, second)
        for _ in range(2):
            ServedScorer(config, 0).batch(record, rows_of(record))
        assert len(bodies) == len(rows_of(record).rollouts)
    told = capsys.readouterr().err
    assert told.count(f"has the scores of {first}: ") == 1 and second in told


@pytest.mark.parametrize("how", ["another top_k", "cut", "empty", "another zip"])
def test_what_is_of_another_batch_or_damaged_is_told_in_a_line(tmp_path, how):
    record = made.of_batch(1)
    with served_teacher.served(VOCABULARY) as (address, _):
        config = config_of(tmp_path, address)
        record.write(folder_of(config.run_dir, 1))
        ServedScorer(config, 0).batch(record, rows_of(record))
        file = folder_of(config.run_dir, 1) / TEACHER_FILE
        if how == "cut":
            file.write_bytes(file.read_bytes()[:100])
        elif how == "empty":
            file.write_bytes(b"")
        elif how == "another zip":
            content = bytearray(file.read_bytes())
            content[content.index(b"PK\x01\x02") + 10] = 77
            file.write_bytes(content)
        else:
            config = config_of(tmp_path, address, f"distill.top_k={K + 1}")
        with pytest.raises(ConfigError, match=r"teacher\.npz: no teacher's scores .*remove it"):
            ServedScorer(config, 0).batch(record, rows_of(record))


def test_an_answer_with_an_id_that_the_teacher_does_not_know_is_not_trained():
    record = made.of_batch(1)
    last = max(int(record.tokens(n).max()) for n in np.flatnonzero(record.is_trained_N))
    same = without_unknown(record, last + 1)
    assert same.is_trained_N.tolist() == record.is_trained_N.tolist()
    cut = without_unknown(record, last)
    for n in range(len(record)):
        is_known = record.tokens(n).max() < last
        assert cut.is_trained_N[n] == (record.is_trained_N[n] and is_known)
    assert cut.is_trained_N.sum() < record.is_trained_N.sum()
