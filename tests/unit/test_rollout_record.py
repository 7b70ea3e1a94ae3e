"""Records of rollouts are read as written, and a damaged one is refused in a line."""

import itertools
import json

import numpy as np
import pytest

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.rollouts import forgetting
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts import record_files as files
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord, TaskName, folder_of
from megatron_qwen3.posttrain.rollouts.rollout import Rollout
from megatron_qwen3.posttrain.watching import samples

NAN = float("nan")


def rollout(task, tokens, finish="stop", thinking=True, seed=1, forced=()):
    """tokens: their number."""
    sampled = tuple(k not in forced for k in range(tokens))
    log_probs = tuple(-0.5 * k if sampled[k] else 0.0 for k in range(tokens))
    ids = tuple(range(10, 10 + tokens))
    return Rollout(task, (1, 2, 3), ids, log_probs, sampled, finish, (4, 5), thinking, seed)


GROUPS = [
    [rollout("a", 3), rollout("a", 0, "error")],
    [rollout("b", 5, "length", False, 2, forced=(1, 2)), rollout("b", 2, "stop", False, 2)],
]
TASKS = [TaskName("a", "school", "thinking"), TaskName("b", "school", "non-thinking")]


def made(batch=3, sampled_step=6, **more):
    scores = {
        "reward_N": np.array([1, NAN, NAN, 0], np.float32),
        "advantage_N": np.array([0.5, 0, 0, -0.5], np.float32),
        "parts_NP": np.array([[1, NAN], [NAN, NAN], [NAN, 0], [0, 1]], np.float32),
        "is_trained_N": np.array([True, False, False, True]),
    }
    about = {
        "batch": batch,
        "first_step": 2 * batch,
        "sampled_step": sampled_step,
        "parts": ("verifier", "format"),
        "counts": {"asked": 2},
        "seconds": {"rollout": 1.25},
        "refit": {"bytes": 4096, "difference": 3e-6},
        "state": {"drawn": 17, "rates": {"school": [0.1, 3.0]}},
    }
    return RolloutRecord(**(records.of_groups(GROUPS, TASKS) | scores | about | more))


def test_a_record_is_read_as_it_was_written(tmp_path):
    folder = folder_of(tmp_path, 3)
    made().write(folder, [{"task": "a", "answer": "é"}])
    found = RolloutRecord.read(folder)
    for name in records._DTYPES:
        one, other = getattr(made(), name), getattr(found, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    for name in (
        "batch",
        "first_step",
        "sampled_step",
        "parts",
        "counts",
        "seconds",
        "state",
        "refit",
    ):
        assert getattr(found, name) == getattr(made(), name)
    assert found.tasks == tuple(TASKS) and len(found) == 4
    for n, each in enumerate(each for group in GROUPS for each in group):
        assert found.prompt(n).tolist() == list(each.prompt)
        assert found.tokens(n).tolist() == list(each.tokens)
        assert found.sampled[found.places(n)].tolist() == list(each.sampled)
        np.testing.assert_allclose(found.log_probs[found.places(n)], each.log_probs)
    assert found.trained_tokens_N.tolist() == [3, 0, 0, 2]
    assert found.is_truncated_N.tolist() == [False, False, True, False]
    (line,) = (folder / "samples.jsonl").read_text().splitlines()
    assert json.loads(line)["answer"] == "é"


def test_a_record_takes_the_place_of_one_of_its_name(tmp_path):
    for count in (1, 2):
        made(counts={"asked": count}).write(folder_of(tmp_path, 3))
    assert RolloutRecord.read(folder_of(tmp_path, 3)).counts == {"asked": 2}
    assert [path.name for path in records.home(tmp_path).iterdir()] == ["000003"]


def test_a_batch_without_rollouts_is_a_record(tmp_path):
    empty = {name: getattr(made(), name)[:0] for name in records._DTYPES}
    made(**empty).write(folder_of(tmp_path, 3))
    assert len(RolloutRecord.read(folder_of(tmp_path, 3))) == 0


def of_another_version(folder):
    path = folder / "record.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 7'))


def cut(folder):
    path = folder / "rollouts.npz"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder):
    path = folder / "rollouts.npz"
    content = bytearray(path.read_bytes())
    content[content.index(b"ids.npy") + 200] ^= 1
    path.write_bytes(content)


def shorten(folder):
    path = folder / "rollouts.npz"
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, "log_probs": arrays["log_probs"][:-1]})


def pickles(folder):
    path = folder / "rollouts.npz"
    with np.load(path) as arrays:
        np.savez(path, **{**arrays, "ids": np.array([{}], dtype=object)})


def of_another_zip(folder):
    """A turned bit in the directory of the archive: a way of compression that nobody has."""
    path = folder / "rollouts.npz"
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 10] = 77
    path.write_bytes(content)


def turn_beside_a_crc(folder):
    """In the date of a part, which no array is read by."""
    content = bytearray((folder / "rollouts.npz").read_bytes())
    content[10] ^= 1
    (folder / "rollouts.npz").write_bytes(content)


def turn(old, new, name="record.json"):
    def turned(folder):
        content = (folder / name).read_bytes()
        assert old in content
        (folder / name).write_bytes(content.replace(old, new, 1))

    return turned


def without_state(folder):
    path = folder / "record.json"
    path.write_text(json.dumps({"version": 1}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (of_another_version, "is a record of rollouts of version 7, known: 1"),
        (cut, "not a whole record of rollouts: "),
        (flip, "not a whole record of rollouts: Bad CRC-32"),
        (shorten, "log_probs is [9] of float32, and should be [10] of float32"),
        (pickles, "Object arrays cannot be loaded"),
        (lambda folder: (folder / "rollouts.npz").write_bytes(b""), "No data left in file"),
        (of_another_zip, "That compression method is not supported"),
        (turn(b'"drawn": 17', b'"drawn": 16'), "record.json has another sha256 than it says"),
        (turn(b'"asked": 2', b'"asked": 3'), "record.json has another sha256 than it says"),
        (turn_beside_a_crc, "rollouts.npz has another sha256 than record.json says"),
        (without_state, "not a whole record of rollouts: 'tasks'"),
        (lambda folder: (folder / "rollouts.npz").unlink(), "No such file or directory"),
    ],
)
def test_a_damaged_record_is_refused_in_one_line_with_the_way_out(tmp_path, damage, says):
    folder = folder_of(tmp_path, 3)
    made().write(folder)
    damage(folder)
    with pytest.raises(ConfigError) as caught:
        RolloutRecord.read(folder)
    told = str(caught.value)
    assert says in told and str(folder) in told and "its tasks are asked again" in told
    assert len(told.splitlines()) == 1


def test_what_is_no_record_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="group_N does not ascend"):
        made(group_N=np.array([1, 0, 0, 0], np.int32)).write(folder_of(tmp_path, 3))
    assert not folder_of(tmp_path, 3).exists()


@pytest.mark.parametrize(("step", "stay"), [(0, []), (1, [0]), (2, [0, 1]), (5, [0, 1, 2])])
def test_a_run_that_goes_on_keeps_what_weights_up_to_its_step_sampled(tmp_path, step, stay):
    for batch, sampled in enumerate((0, 2, 4)):
        made(batch, sampled).write(folder_of(tmp_path, batch))
    (records.home(tmp_path) / "000009.123.partial").mkdir()
    gone = records.clean(tmp_path, step)
    assert records.batches(tmp_path) == stay and gone == [n for n in range(3) if n not in stay]
    assert len(list(records.home(tmp_path).iterdir())) == len(stay)


def test_a_record_that_cannot_be_read_goes_with_all_after_it(tmp_path):
    for batch in range(3):
        made(batch, 0).write(folder_of(tmp_path, batch))
    without = folder_of(tmp_path, 1) / "record.json"
    without.unlink()
    assert records.clean(tmp_path, 9) == [1, 2]


def test_old_log_probs_stand_beside_the_rollouts_they_are_of(tmp_path):
    folder = folder_of(tmp_path, 3)
    made().write(folder)
    assert files.read_old(folder, 10) is None
    files.write_old(folder, np.arange(10) / 8)
    assert files.read_old(folder, 10).tolist() == (np.arange(10) / 8).tolist()
    with pytest.raises(ConfigError, match="10 log-probs of 11 tokens"):
        files.read_old(folder, 11)


def test_old_batches_stay_for_reading_alone(tmp_path):
    for batch in range(3):
        made(batch).write(folder_of(tmp_path, batch), [{"answer": "x"}])
    forgetting.forget(tmp_path, 2)
    assert [(folder_of(tmp_path, n) / "rollouts.npz").exists() for n in range(3)] == [0, 0, 1]
    assert records.read_about(folder_of(tmp_path, 0))["batch"] == 0


@pytest.mark.parametrize("arrays", [True, False])
def test_a_long_run_keeps_samples_of_its_newest_batches_and_of_some_before(
    tmp_path, monkeypatch, arrays
):
    monkeypatch.setattr(forgetting, "KEPT_SAMPLES", 3)
    monkeypatch.setattr(forgetting, "KEPT_EVERY", 4)
    for batch in range(12):
        made(batch).write(folder_of(tmp_path, batch), [{"answer": "x"}])
        forgetting.forget(tmp_path, batch, arrays)
    have = [n for n in range(12) if (folder_of(tmp_path, n) / "samples.jsonl").exists()]
    assert have == ([0, 4, 8, 9, 10, 11] if arrays else [*range(12)])
    if arrays:
        with pytest.raises(ConfigError, match="has no samples.jsonl: answers are kept of the new"):
            samples.read(folder_of(tmp_path, 3))


RATES = {"school": {f"t{n}": [4.0, 1.0] for n in range(1000)}}
ASKING = {"asking": {"drawn": 3, "task_rates": RATES}}


def test_pass_rates_of_single_tasks_stand_apart_and_the_next_batch_has_them(tmp_path):
    folder = folder_of(tmp_path, 3)
    made(state=ASKING).write(folder)
    assert (folder / "record.json").stat().st_size < 2000
    assert RolloutRecord.read(folder).state == {"asking": {"drawn": 3}}
    assert records.read_state(folder) == ASKING


@pytest.mark.parametrize("arrays", [True, False])
def test_only_batches_that_may_be_gone_on_from_keep_rates_of_tasks(tmp_path, arrays):
    for batch in range(6):
        made(batch, state=ASKING).write(folder_of(tmp_path, batch))
        forgetting.forget(tmp_path, batch - 1, arrays)
    have = [n for n in range(6) if (folder_of(tmp_path, n) / "rates.json").exists()]
    assert have == [3, 4, 5]  # batch 4 may be made again, from what is in 3
    kept = [n for n in range(6) if (folder_of(tmp_path, n) / "rollouts.npz").exists()]
    assert kept == ([4, 5] if arrays else [*range(6)])
    assert records.read_state(folder_of(tmp_path, 3)) == ASKING


@pytest.mark.parametrize("damage", [turn(b"4.0", b"5.0", "rates.json"), None])
def test_rates_that_are_damaged_or_gone_are_told(tmp_path, damage):
    folder = folder_of(tmp_path, 3)
    made(state=ASKING).write(folder)
    damage(folder) if damage else (folder / "rates.json").unlink()
    with pytest.raises(ConfigError, match="its tasks are asked again"):
        records.read_state(folder)


def test_a_record_without_checksums_and_with_rates_inside_is_read(tmp_path):
    folder = folder_of(tmp_path, 3)
    made(state=ASKING).write(folder)
    about = json.loads((folder / "record.json").read_text())
    del about["sha256"]
    (folder / "rates.json").unlink()
    (folder / "record.json").write_text(json.dumps(about | {"state": ASKING}))
    assert RolloutRecord.read(folder).state == records.read_state(folder) == ASKING


def test_a_batch_that_is_begun_stays_as_it_was_shared_out_with_another_seed():
    groups = np.arange(4, dtype=np.int32)
    trained = {"group_N": groups, "is_trained_N": np.array([True, False, True, True])}
    begun = made(state={"seed": 5}, **trained)
    shares = [made(state={}, **trained).updates(2, seed) for seed in range(20)]
    assert any(share != shares[5] for share in shares)
    assert all(begun.updates(2, seed) == shares[5] for seed in range(20))


def test_whether_an_answer_passed_is_the_same_of_one_and_of_a_batch():
    known = (NAN, 0.0, 0.4, 0.5, 1.0, -0.1)
    for parts in (("judge", "verifier"), ("verifier", "judge"), ("judge",), ("format",)):
        for scores in itertools.product(known, repeat=1 + len(parts)):
            total, *rest = scores
            rewards = np.full(4, total, np.float32)
            found = made(parts=parts, reward_N=rewards, parts_NP=np.float32([rest] * 4)).passed_N[0]
            told = [None if np.isnan(x) else x for x in scores]
            expected = records.passed(told[0], dict(zip(parts, told[1:], strict=True)))
            assert (None if np.isnan(found) else bool(found)) == expected
