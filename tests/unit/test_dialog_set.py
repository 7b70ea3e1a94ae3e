"""A set of dialogs is read as it was written, or refused in one line."""

import hashlib
import json
import shutil
import sys
from subprocess import run

import numpy as np
import pytest

from data_prep.indexed import IndexedReader
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.dialogs.dialog_set import SAMPLE, DialogSet, DialogSetWriter
from tests.dialog_sets import TOKENIZER, random_samples, write_set

SAMPLES = random_samples(50)


@pytest.fixture
def prefix(tmp_path):
    write_set(tmp_path / "chat", SAMPLES)
    return tmp_path / "chat"


def test_a_set_is_read_as_it_was_written(tmp_path):
    columns = {
        "weight": np.linspace(0.5, 2, 50),
        "mode": ["thinking", "non-thinking"] * 25,
        "source": ["web", "code", "web", "maths", "web"] * 10,
        "dialog": np.arange(50) * 7,
        "margin": np.arange(50) / 8,
    }
    dialogs = write_set(tmp_path / "chat", SAMPLES, **columns)
    assert len(dialogs) == 50 and dialogs.kind == "dialogs"
    assert (dialogs.vocab_size, dialogs.tokenizer) == (100, TOKENIZER)
    assert dialogs.sources == ("web", "code", "maths")
    assert [dialogs.sources[k] for k in dialogs.sources_N] == columns["source"]
    assert dialogs.modes_N.tolist() == [1, 2] * 25
    assert np.array_equal(dialogs.weights_N, columns["weight"].astype(np.float32))
    assert np.array_equal(dialogs.margins_N, columns["margin"].astype(np.float32))
    assert np.array_equal(dialogs.dialogs_N, columns["dialog"])
    assert dialogs.lengths_N.tolist() == [len(ids) for ids, _ in SAMPLES]
    for n in (0, 49, 17):
        assert np.array_equal(dialogs.read(n).ids, SAMPLES[n][0])
        assert np.array_equal(dialogs.read(n).trained, SAMPLES[n][1])
    with pytest.raises(IndexError, match="samples 0 to 49, not 50"):
        dialogs.read(50)


def test_what_lies_there_is_plain_megatron_numpy_and_json(prefix):
    reader = IndexedReader(prefix)
    assert reader.num_documents == 50
    assert np.array_equal(reader.tokens, np.concatenate([ids for ids, _ in SAMPLES]))
    trained = np.fromfile(f"{prefix}.trained", np.uint8)
    assert np.array_equal(trained, np.concatenate([trained for _, trained in SAMPLES]))
    rows = np.load(f"{prefix}.samples.npy")
    assert rows.dtype == SAMPLE and rows.shape == (50,)
    content = json.loads((prefix.parent / "chat.json").read_text())
    assert content["trained_tokens"] == trained.sum()
    for suffix, digest in content["sha256"].items():
        path = prefix.parent / f"chat.{suffix}"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


def test_ids_that_do_not_fit_16_bits_are_kept(tmp_path):
    dialogs = write_set(tmp_path / "chat", [([151_645, 3], [0, 1])], vocab_size=151_669)
    assert dialogs.read(0).ids.tolist() == [151_645, 3]


def test_the_fingerprint_is_that_of_the_samples_and_not_of_how_they_were_made(tmp_path):
    samples = [([1, 2, 3], [0, 0, 1])]
    first = write_set(tmp_path / "a", samples).fingerprint
    say(about={"made": "later"})(tmp_path / "a")
    assert DialogSet(tmp_path / "a").fingerprint == first and len(first) == 16
    others = [
        write_set(tmp_path / "b", [([1, 2, 4], [0, 0, 1])]),
        write_set(tmp_path / "c", [([1, 2, 3], [0, 1, 1])]),
        write_set(tmp_path / "d", samples, weight=[2.0]),
        write_set(tmp_path / "e", samples, source=["code"]),
        write_set(tmp_path / "f", samples, tokenizer="1" * 64),
    ]
    assert first not in {one.fingerprint for one in others}
    assert len({one.fingerprint for one in others}) == 5


def cut(suffix, count):
    def damage(prefix):
        path = prefix.parent / f"{prefix.name}.{suffix}"
        path.write_bytes(path.read_bytes()[:count])

    return damage


def say(**changes):
    def damage(prefix):
        path = prefix.parent / f"{prefix.name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def put(name, value):
    def damage(prefix):
        path = f"{prefix}.samples.npy"
        rows = np.load(path)
        rows[name][7] = value
        np.save(path, rows)

    return damage


def lose(suffix):
    return lambda prefix: (prefix.parent / f"{prefix.name}.{suffix}").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose("json"), "chat.json does not exist: the set of dialogs is not whole, or no set"),
        (lose("idx"), "chat.idx does not exist"),
        (lose("bin"), "chat.bin does not exist"),
        (lose("trained"), "chat.trained cannot be read: No such file"),
        (lose("samples.npy"), "chat.samples.npy cannot be read: No such file"),
        (cut("json", 40), "chat.json is not JSON"),
        (cut("idx", 100), "chat.idx has 100 bytes"),
        (cut("bin", 100), "chat.bin has 100 bytes"),
        (cut("trained", 100), r"chat.trained has 100 bytes for [\d,]+ tokens"),
        (cut("samples.npy", 500), "chat.samples.npy cannot be read"),
        (cut("samples.npy", 0), "chat.samples.npy cannot be read"),
        (say(version=2), "chat.json is of version 2; known: 1"),
        (say(kind="tables"), "chat.json is of kind 'tables', not dialogs or pairs"),
        (say(samples=49), "chat.json says 49 samples of"),
        (say(kind="pairs", sources=[]), "has a mode or source that has no name"),
        (put("weight", 0), "has a weight that is no finite number above 0"),
        (put("weight", np.nan), "has a weight that is no finite number above 0"),
        (put("weight", np.inf), "has a weight that is no finite number above 0"),
        (put("mode", 3), "has a mode or source that has no name"),
        (put("source", 1), "has a mode or source that has no name"),
        (put("margin", np.nan), "has a margin that is no finite number"),
    ],
)
def test_a_set_that_is_not_whole_is_refused_in_one_line(prefix, damage, reason):
    damage(prefix)
    with pytest.raises(ConfigError, match=reason) as refused:
        DialogSet(prefix)
    assert "\n" not in str(refused.value) and str(prefix) in str(refused.value)


def test_a_half_of_a_pair_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="3 samples, of pairs without a half"):
        write_set(tmp_path / "pairs", SAMPLES[:3], kind="pairs")
    assert len(write_set(tmp_path / "pairs", SAMPLES[:4], kind="pairs")) == 4


def test_a_writer_that_fails_leaves_nothing_and_what_was_there_before(prefix):
    before = {path.name: path.read_bytes() for path in prefix.parent.iterdir()}
    with (
        pytest.raises(ValueError, match="do not fit"),
        DialogSetWriter(prefix, "dialogs", 100, TOKENIZER) as writer,
    ):
        row = np.ones(1, SAMPLE)
        writer.add(np.array([1, 2]), np.array([2]), np.array([False, True]), row)
        writer.add(np.array([1, 70_000]), np.array([2]), np.array([False, True]), row)
    assert {path.name: path.read_bytes() for path in prefix.parent.iterdir()} == before


def test_a_killed_writer_leaves_no_set(prefix, tmp_path):
    """Between the first file's name and the last's: the set of before is gone, no half is taken."""
    script = """
import sys, numpy as np
from megatron_qwen3.posttrain.dialogs import dialog_set
def die(*_): sys.stdout.flush(); __import__("os")._exit(9)
dialog_set.write_json = die
with dialog_set.DialogSetWriter(sys.argv[1], "dialogs", 100, "0") as writer:
    row = np.ones(1, dialog_set.SAMPLE)
    writer.add(np.array([1, 2]), np.array([2]), np.array([0, 1], bool), row)
"""
    assert run([sys.executable, "-c", script, str(prefix)]).returncode == 9
    with pytest.raises(ConfigError, match=r"chat\.json does not exist"):
        DialogSet(prefix)
    shutil.rmtree(tmp_path)
