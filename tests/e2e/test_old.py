"""Files of earlier releases are read and gone on with; tests/old/README.md lists them.

Each goes on with the next step of the code that made it: the order of the samples exactly, the
numbers as far as releases agree on them.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from ranks import run_ranks

from data_prep.fingerprint import file_sha256
from data_prep.seal import provenance_sha256
from megatron_qwen3.convert import stream
from megatron_qwen3.generate.__main__ import main
from megatron_qwen3.pretrain.provenance import locate
from megatron_qwen3.storage import folder
from megatron_qwen3.training.history import RunHistory

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "old"
sys.path.insert(0, str(OLD))  # the ranks find it, too

from going_on import CLEAN, FINISH_TOKENS, go_on  # noqa: E402

EXPECTED = json.loads((OLD / "expected.json").read_text())
BF16_DIGITS = 1e-2  # of a loss in bf16, whose rounding is not the same everywhere


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    home = tmp_path_factory.mktemp("old")
    with tarfile.open(OLD / "old.tar.xz") as archive:
        archive.extractall(home, filter="data")
    return home


@pytest.fixture
def old(unpacked, tmp_path):
    """A copy in a folder of another name; times are kept, which a plan compares."""
    shutil.copytree(unpacked, tmp_path / "moved here")
    return tmp_path / "moved here"


def whole_batches(steps_of_ranks, copies):
    """The rows of all data ranks in order, of which each rank is one of `copies` alike."""
    for steps in zip(*steps_of_ranks[::copies], strict=True):
        yield {**steps[0], "tokens": [row for step in steps for row in step["tokens"]]}


@pytest.mark.parametrize(
    ("name", "ranks", "copies", "layout"),
    [
        ("sources", 1, 1, ()),
        ("sources", 2, 2, ("parallel.tensor=2", "parallel.expert=2")),
        pytest.param("sources", 2, 2, ("parallel.pipeline=2",), marks=pytest.mark.slow),
        ("stage_two", 2, 1, ()),
        ("curriculum", 1, 1, ()),
        pytest.param("curriculum", 2, 1, ("optim.distributed=false",), marks=pytest.mark.slow),
        ("bf16", 2, 1, ()),
        ("after_sources", 1, 1, ()),
        ("after_curriculum", 1, 1, ()),
    ],
)
def test_an_old_run_goes_on_with_the_samples_and_the_loss_that_came_next(
    old, name, ranks, copies, layout
):
    told = run_ranks(go_on, ranks, str(old), name, *layout)
    steps, expected = list(whole_batches(told, copies)), EXPECTED[name]
    assert [step["step"] for step in steps] == [step["step"] for step in expected]
    assert [step["tokens"] for step in steps] == [step["tokens"] for step in expected]
    digits = BF16_DIGITS if name == "bf16" else 1e-5
    assert steps[0]["loss"] == pytest.approx(expected[0]["loss"], rel=digits)
    assert steps[0]["grad_norm"] == pytest.approx(expected[0]["grad_norm"], rel=10 * digits)
    if name == "sources":  # without weight decay: moments and the count of updates were read
        later = [step["loss"] for step in steps]
        assert later == pytest.approx([step["loss"] for step in expected], rel=3e-6)


def tool(old, *words):
    """Run a tool in the old folder; its output."""
    command = [sys.executable, ROOT / "tools" / words[0], *words[1:]]
    ended = subprocess.run(command, cwd=old, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_an_old_tokenization_that_was_begun_ends_with_the_same_shards(old):
    tool(old, *FINISH_TOKENS)
    for name, digest in EXPECTED["begun"].items():
        prefix, _, suffix = str(old / "tokens_begun" / name).rpartition(".")
        # A shard that is written now has its seal behind its provenance.
        of = provenance_sha256(prefix) if suffix == "docs" else file_sha256(f"{prefix}.{suffix}")
        assert of == digest
    assert not (old / "tokens_begun" / "work").exists()
    assert "3 shards, 0 faults" in tool(old, "inspect_shards.py", "verify", "tokens_begun")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clean", "clean_begun"])
def test_an_old_cleaning_ends_with_the_same_documents(old, name):
    whole = {p.name: p.read_bytes() for p in (old / "clean" / "documents").iterdir()}
    report = json.loads((old / "clean" / "report.json").read_text())
    assert "20 of 24 documents kept" in tool(old, *CLEAN, name)
    assert {p.name: p.read_bytes() for p in (old / name / "documents").iterdir()} == whole
    found = json.loads((old / name / "report.json").read_text())
    assert found | report == found  # and more that reports did not have


def test_old_shards_are_whole_and_mix(old):
    assert "3 shards, 0 faults" in tool(old, "inspect_shards.py", "verify", "tokens")
    mix = ("mix_curriculum.py", "mix", "tokens", "--recipe", "recipe.toml", "--no-page")
    tool(old, *mix, "--out", "again.json")
    again, before = (json.loads((old / n).read_text()) for n in ("again.json", "curriculum.json"))
    assert again["stages"] == before["stages"]


def test_a_curriculum_after_an_old_run_goes_on_where_it_stood(old):
    mix = ("mix_curriculum.py", "mix", "tokens", "--recipe", "recipe.toml", "--no-page")
    told = tool(old, *mix, "--after", "runs/curriculum", "--out", "after.json")
    assert "put together otherwise" not in told
    stage = json.loads((old / "after.json").read_text())["stages"]["general"]
    record = json.loads((old / "runs/curriculum/data.json").read_text())
    batch, length = record["parts"][0]["global_batch"], record["parts"][0]["sequence_length"]
    assert sum(row["cursor"] for row in stage["sources"].values()) == 3 * batch * length


@pytest.mark.parametrize("name", ["sources", "stage_two", "curriculum"])
def test_rows_of_an_old_run_are_found_again(old, monkeypatch, name):
    """By its record alone, those of steps to come, too."""
    monkeypatch.chdir(old)
    for step in EXPECTED[name]:
        for row, tokens in enumerate(step["tokens"]):
            pieces = locate(f"runs/{name}", step["step"], row).pieces
            assert [token for piece in pieces for token in piece.tokens.tolist()] == tokens


def test_metrics_of_an_old_run_are_read(old):
    run = RunHistory.read(old / "runs/sources")
    assert (run.steps, run.tokens) == (5, 160)
    assert run.columns["step"].tolist() == [1, 2, 4, 5]
    assert 'name = "sources"' in run.config_text


def test_an_old_export_is_what_its_checkpoint_becomes_and_converts_back(old):
    step = folder.newest(old / "runs/sources")
    stream.to_hf(step, old / "again")
    stream.from_hf(old / "hf", old / "back")
    stream.to_hf(old / "back", old / "twice")
    load_file = pytest.importorskip("safetensors.torch").load_file
    first = load_file(old / "hf/model.safetensors")
    for name in ("again", "twice"):
        weights = load_file(old / name / "model.safetensors")
        assert weights.keys() == first.keys()
        assert all(weights[key].equal(first[key]) for key in first)


def generated(home, *words):
    os.chdir(home)
    with contextlib.redirect_stdout(io.StringIO()) as told:
        status = main([*words, "--temperature", "0"])
    return status, told.getvalue()


def test_an_old_checkpoint_generates(old):
    asked = ("--prompt", "the river", "--max-new-tokens", "4")
    asked += ("run.device=cpu", "data.tokenizer=tokenizer")
    ((status, text),) = run_ranks(generated, 1, str(old), "runs/curriculum", *asked)
    assert status == 0 and len(text) > 1
